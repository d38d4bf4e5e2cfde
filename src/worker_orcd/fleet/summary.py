"""The workers of a fleet shown as one: health, records, metrics (pure)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from worker_orcd.fleet.wire import WorkerState
from worker_orcd.worker.health import Health, Status
from worker_orcd.worker.interface import Record

_SAMPLE = re.compile(rb"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S.*)")


def health_of_fleet(
    router: str, states: Sequence[WorkerState], uptime_sec: float, *, draining: bool
) -> Health:
    """Healthy as long as one worker is; figures are those of all workers together."""
    all_health = [state.health for state in states]
    best = next((health for health in all_health if health.status is Status.HEALTHY), None)
    shown = best or next(iter(all_health), None) or _NOTHING
    status = Status.DRAINING if draining else shown.status
    sums = ("kv_cells_total", "kv_cells_used", "kv_cells_cached", "jobs_running", "jobs_queued")
    added: dict[str, Any] = {name: sum(getattr(health, name) or 0 for health in all_health) for name in sums}
    return replace(
        shown,
        status=status,
        reason=shown.reason if best is None else None,
        worker_id=router,
        vram_bytes_used=sum(health.vram_bytes_used for health in all_health),
        prefix_store_bytes=sum(health.prefix_store_bytes or 0 for health in all_health),
        engine_pid=None,
        engine_restarts=sum(health.engine_restarts for health in all_health),
        exact=bool(all_health) and all(health.exact for health in all_health),
        uptime_seconds=round(uptime_sec, 3),
        **added,
    )


_NOTHING = Health(
    status=Status.LOADING,
    reason="no worker of the fleet has reported yet",
    worker_id="",
    model=None,
    device=None,
    resident=False,
    quant_kind=None,
    vram_bytes_used=0,
    tokenizer_kind=None,
    vocab_size=None,
    context_length=None,
    kv_cells_total=0,
    kv_cells_used=None,
    kv_cells_cached=None,
    prefix_store_bytes=None,
    jobs_running=None,
    jobs_queued=None,
    engine_pid=None,
    engine_restarts=0,
    exact=False,
    uptime_seconds=0.0,
)


def merged_records(lists: Iterable[Sequence[Record]], limit: int) -> list[Record]:
    """Records of several workers: live ones oldest first, then at most `limit` ended ones, latest first. Of a job that
    went on at another worker, the one that is live counts, or else the first."""
    by_use: dict[object, Record] = {}
    for records in lists:
        for record in records:
            known = by_use.get(record["incarnation"])
            if known is None or (known["ended_ms"] is not None and record["ended_ms"] is None):
                by_use[record["incarnation"]] = record
    found = sorted(by_use.values(), key=lambda record: str(record["accepted_at"]))
    live = [record for record in found if record["ended_ms"] is None]
    ended = [record for record in reversed(found) if record["ended_ms"] is not None]
    return live + ended[:limit]


def merged_metrics(texts: Sequence[tuple[str, bytes]]) -> bytes:
    """Several processes' metrics in Prometheus' text format as one, with the label `worker_id` on each sample."""
    heads: dict[bytes, dict[bytes, None]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for name, text in texts:
        label = b'worker_id="%b"' % name.encode()
        family = b""
        for line in text.splitlines():
            if line.startswith(b"# "):
                family = line.split(b" ")[2]
                heads.setdefault(family, {})[line] = None
                samples.setdefault(family, [])
            elif found := _SAMPLE.fullmatch(line):
                labels = found[2] or b""
                if b"worker_id=" not in labels:
                    labels = b",".join(filter(None, (label, labels)))
                samples.setdefault(family, []).append(b"%b{%b} %b" % (found[1], labels, found[3]))
    lines = [line for family, head in heads.items() for line in (*head, *samples[family])]
    return b"".join(line + b"\n" for line in lines)
