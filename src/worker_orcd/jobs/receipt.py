"""Receipts: what a stop did and when, as proof for clients."""

from dataclasses import dataclass

from worker_orcd.jobs.stop_request import StopReason


@dataclass(frozen=True, slots=True)
class Release:
    """The engine's confirmation (or death) that it computes and holds nothing for a job any more.

    Attributes:
        stopped_at: when computing ended, in seconds of the front's monotonic clock.
        freed_at: when its cells and sequence were freed, on the same clock; None if that is not confirmed.
        cells_before: KV cells that it held before the stop.
        cells_after: KV cells that it holds now, by the engine's own count; None if that is not confirmed.
        prompt_processed: prompt tokens that were in KV cells.
        prompt_cached: how many of these were reused instead of computed.
        cells_warm: how many of the job's KV cells later jobs can reuse.
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
    """The result of a stop. All times are milliseconds from the acceptance of the first stop request."""

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
