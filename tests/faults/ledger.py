"""Counts of a run of fault tests: the faults, the checks, and the slowest cancels."""

import signal
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from worker_orcd.testing.harness import RunningWorker, Stream


@dataclass(slots=True)
class Ledger:
    """Filled by the tests of a session; `report` is printed at its end."""

    faults: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    requeues: int = 0
    terminal_ms: dict[str, list[float]] = field(default_factory=dict)

    def harm(self, worker: RunningWorker, sig: signal.Signals) -> None:
        """Send the engine a signal, if there is an engine at that moment."""
        pid = worker.health()["engine_pid"]
        if pid is not None:
            worker.signal_engine(sig)
            self.faults[f"{sig.name} of the engine"] += 1

    def went_on(self, worker: RunningWorker, streams: Sequence[Stream]) -> int:
        """How many of these jobs were requeued, that is, were hit by a fault."""
        hit = sum(bool(worker.record(stream.job_id)["requeues"]) for stream in streams)
        self.requeues += hit
        return hit

    def whole(self, stream: Stream, undisturbed: Sequence[Any] | None = None, within_sec: float = 60) -> None:
        """Wait for a stream's end and check that it is whole: unbroken numbers, one ending.

        Args:
            stream: of a job that nobody stopped, if `undisturbed` is given.
            undisturbed: the data of the tokens that the same job gives undisturbed; it has to have just those.
            within_sec: how long to wait.
        """
        stream.finished(within_sec).assert_whole()
        self.streams["integrity checked" if undisturbed is None else "identical to undisturbed ones"] += 1
        self.tokens += len(stream.tokens)
        if undisturbed is not None:
            assert [event.data for event in stream.tokens] == list(undisturbed)
            assert stream.events[-1].event == "end"

    def reported(self, what: str, receipt: dict[str, Any] | None) -> None:
        """A cancel's receipt, unless the job ended naturally before it."""
        if receipt is not None:
            assert receipt["kv_cells_after"] == 0
            self.terminal_ms.setdefault(what, []).append(receipt["terminal_ms"])

    def report(self) -> list[str]:
        """The counts, as lines of text."""
        lines = [f"{count} x {what}" for what, count in sorted(self.faults.items())]
        lines += [f"{count} streams {what}" for what, count in sorted(self.streams.items())]
        lines.append(f"{self.tokens} tokens in them; {self.requeues} jobs requeued")
        for what, reported in sorted(self.terminal_ms.items()):
            half, slowest = statistics.median(reported), max(reported)
            lines.append(
                f"cancels {what}: n={len(reported)}, terminal event "
                f"after {half:.0f} ms (median), {slowest:.0f} ms at most"
            )
        return lines


LEDGER = Ledger()
