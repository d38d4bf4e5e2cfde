"""What a stop did and when: the proof that a client can look up (contract, section 5)."""

from dataclasses import dataclass

from worker_orcd.jobs.stop_request import StopReason


@dataclass(frozen=True, slots=True)
class Release:
    """The engine's confirmation (or its death): nothing is computed or held for a job any more.

    Attributes:
        stopped_at: when computing ended, seconds of the front's monotonic clock.
        freed_at: when its cells and sequence were free, same clock; None if that could not be confirmed.
        cells_before: KV cells it held when asked.
        cells_after: KV cells it holds now, by the engine's own count; None if that could not be confirmed.
        prompt_processed: prompt tokens that were in KV cells.
        prompt_cached: how many of these were in KV cells already when the job began.
        cells_warm: of the job's KV cells, those that a later job need not compute.
    """

    stopped_at: float
    freed_at: float | None
    cells_before: int = 0
    cells_after: int | None = 0
    prompt_processed: int = 0
    prompt_cached: int = 0
    cells_warm: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a stop did. All times are milliseconds from the acceptance of the first stop request."""

    reason: StopReason
    phase: str
    stopped_ms: float
    freed_ms: float | None
    terminal_ms: float
    prompt_tokens: int
    prompt_tokens_cached: int
    tokens_out: int
    kv_cells_before: int
    kv_cells_after: int | None
    kv_cells_warm: int
    cancel_correlation_id: str | None

    def data(self) -> dict[str, object]:
        """The receipt's JSON object."""
        return {
            "reason": self.reason.value,
            "phase": self.phase,
            "accepted_ms": 0.0,
            "stopped_ms": self.stopped_ms,
            "freed_ms": self.freed_ms,
            "terminal_ms": self.terminal_ms,
            "prompt_tokens": self.prompt_tokens,
            "prompt_tokens_cached": self.prompt_tokens_cached,
            "tokens_out": self.tokens_out,
            "kv_cells_before": self.kv_cells_before,
            "kv_cells_after": self.kv_cells_after,
            "kv_cells_warm": self.kv_cells_warm,
            "cancel_correlation_id": self.cancel_correlation_id,
        }
