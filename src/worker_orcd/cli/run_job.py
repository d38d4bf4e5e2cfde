"""Runs a job in a terminal: shows its events, and handles Ctrl-C."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from worker_orcd.cli.connection import explained
from worker_orcd.cli.output import notice
from worker_orcd.client import (
    CANCEL_SEC,
    Event,
    Receipt,
    SyncClient,
    SyncJob,
    WorkerError,
    WorkerUnreachable,
)

EXIT_INTERRUPTED = 130
"""Shells' exit code for SIGINT: 128 + 2."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The outcome of a job.

    Attributes:
        last: its terminal event.
        interrupted: whether the user pressed Ctrl-C.
        receipt: the job's receipt, if it was stopped and the worker could be reached.
    """

    last: Event
    interrupted: bool
    receipt: Receipt | None

    @property
    def cancelled(self) -> bool:
        """Whether it was stopped, by any client."""
        return self.last.data.get("code") == "CANCELLED"

    @property
    def reason(self) -> str:
        """Why it was stopped."""
        return str(self.receipt.reason if self.receipt else self.last.data.get("reason", "unknown"))

    @property
    def ours(self) -> bool:
        """Whether Ctrl-C stopped it."""
        return self.cancelled and self.interrupted and self.reason == "client"


def run(client: SyncClient, job: SyncJob, show: Callable[[Event], None], *, begun: bool = False) -> Ran:
    """Run a job to its end. The first Ctrl-C cancels the job and waits for the end of its stream; the second exits at
    once.

    Args:
        client: the job's client.
        job: the job.
        show: called with each event.
        begun: whether the job's context was already entered. It is exited here in any case.

    Raises:
        WorkerError: the job was refused, or the connection was lost permanently.
    """
    last: Event | None = None
    with CancelOnInterrupt(job) as interrupt, ExitStack() as entered:
        if begun:
            entered.push(job)
        else:
            entered.enter_context(job)
        interrupt.begun()
        for last in job.events():
            show(last)
    if last is None:
        raise WorkerUnreachable("the stream was cut off before the job's end")
    ran = Ran(last, interrupt.asked, interrupt.receipt())
    if ran.cancelled and ran.receipt is None:
        record = client.job(job.job_id)
        return Ran(last, interrupt.asked, Receipt.of_record(record) if record else None)
    return ran


class CancelOnInterrupt:
    """Cancels the job on Ctrl-C, while it runs."""

    def __init__(self, job: SyncJob) -> None:
        self._job = job
        self._cancelling: threading.Thread | None = None
        self.asked = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def begun(self) -> None:
        """Note that the worker has accepted the job. A cancel that was sent earlier may have missed it, and is
        repeated."""
        if self.asked:
            self._start_cancel()

    def receipt(self) -> Receipt | None:
        """The receipt, if the job was cancelled while it ran."""
        if self._cancelling is not None:
            self._cancelling.join(CANCEL_SEC)
        return self._job.receipt

    def _on_signal(self, *_: object) -> None:
        if self.asked:
            # Does not wait for a stuck engine, because a job without a reader is stopped in any case.
            os._exit(EXIT_INTERRUPTED)
        self.asked = True
        self._start_cancel()

    def _start_cancel(self) -> None:
        # On another thread, because the main thread must continue to read the stream.
        self._cancelling = threading.Thread(target=self._cancel, daemon=True)
        self._cancelling.start()

    def _cancel(self) -> None:
        try:
            self._job.cancel()
        except WorkerError as error:
            notice(f"worker-orcd: {error.code}: {explained(error)}")
