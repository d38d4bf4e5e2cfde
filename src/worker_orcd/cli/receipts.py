"""Formats stops and receipts as one line of text."""

from typing import Any

from worker_orcd.client import Receipt


def receipt_line(receipt: Receipt | None) -> str:
    """A receipt as one line: phase, times and cells, as far as known."""
    if receipt is None:
        return "the receipt is no longer kept"
    freed = "NOT CONFIRMED" if receipt.freed_ms is None else f"after {receipt.freed_ms:.1f} ms"
    after = "unknown" if receipt.kv_cells_after is None else receipt.kv_cells_after
    warm = f", {receipt.kv_cells_warm} kept for later jobs" if receipt.kv_cells_warm else ""
    return (
        f"stopped after {receipt.stopped_ms:.1f} ms, freed {freed}, terminal event after {receipt.terminal_ms:.1f} ms; "
        f"KV cells {receipt.kv_cells_before} → {after}{warm} "
        f"({receipt.phase}, {receipt.prompt_tokens} prompt tokens processed, {receipt.tokens_out} tokens out)"
    )


def what_happened(job_id: str, record: dict[str, Any] | None) -> str:
    """The outcome of a stop request as one line, from the job's record."""
    if record is None:
        return f"job {job_id} is unknown; nothing to stop"
    if record["ended_ms"] is None:
        return f"job {job_id} is still {record['state']}"
    receipt = Receipt.of_record(record)
    if receipt is None:
        return f"job {job_id} had already ended: {record['state']}"
    return f"job {job_id} {record['state']} (reason {receipt.reason}): {receipt_line(receipt)}"
