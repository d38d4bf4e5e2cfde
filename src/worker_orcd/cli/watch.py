"""`worker-orcd ps --watch`: a live view of the worker and its jobs, with keys to cancel them."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import anyio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from worker_orcd.cli import job_table, output
from worker_orcd.cli.connection import explained
from worker_orcd.cli.keyboard import Keyboard
from worker_orcd.cli.receipts import receipt_line, what_happened
from worker_orcd.cli.streams import OutputLost
from worker_orcd.client import Client, WorkerError, WorkerUnreachable
from worker_orcd.printable import printable

REFRESH_SEC = 0.5
LEAVE_SEC = 1.0
"""How long to wait for receipts of cancels before exiting. The cancels themselves are always sent."""
_KEYS = "↑↓ or j k select   c cancel   g cancel its group   q quit"
_BESIDE_THE_JOBS = 3
"""Number of fixed lines: the worker, the headings, the keys."""
_LINES_OF_A_NOTE = 2
"""Number of lines reserved for the latest results, so that the list rarely moves."""

Json = job_table.Json


async def watch(client: Client, console: Console, recent: int) -> int:
    """Watch until the user quits. Returns the exit code.

    Raises:
        WorkerError: the worker cannot be reached at the start, or refuses.
    """
    async with client:
        watching = _Watching(client, console, recent)
        await watching.look()
        try:
            return await watching.run()
        finally:
            for what in watching.happened:
                output.line(what)


class _Watching:
    """The state of a watch: the jobs on screen, the selection, and the results of cancels.

    Attributes:
        happened: one line for each cancel.
    """

    def __init__(self, client: Client, console: Console, recent: int) -> None:
        self.happened: list[str] = []
        self._client = client
        self._console = console
        self._recent = recent
        self._health: Json = {}
        self._records: list[Json] = []
        self._selected: tuple[str, str] | None = None
        self._place = 0
        self._moved_by_itself = False
        """Whether the selection has moved because its job ended. The next key may have been meant for that job."""
        self._output_lost: OutputLost | None = None
        self._note = ""
        self._lost: str | None = None
        self._code = 0
        self._watching = anyio.CancelScope()
        self._news = asyncio.Event()
        self._stopping: set[asyncio.Task[None]] = set()
        self._live = Live(console=console, screen=True, auto_refresh=False)

    async def look(self) -> None:
        """Get health and records from the worker."""
        self._health = await self._client.health()
        self._records = await self._client.jobs(ended=self._recent)
        self._lost = None
        before = self._selected
        self._select(0)
        self._moved_by_itself |= before != self._selected

    async def run(self) -> int:
        """Redraw until the user quits. Returns the exit code.

        Raises:
            OutputLost: the terminal cannot be written any more.
        """
        self._moved_by_itself = False  # The screen was empty before.
        try:
            with ExitStack() as taken:
                self._listen(taken)
                taken.callback(self._live.stop)
                await self._show()
        except OutputLost as lost:
            self._output_lost = lost
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=LEAVE_SEC)
        if self._output_lost is not None and not self._code:
            raise self._output_lost
        return self._code

    async def _show(self) -> None:
        self._live.start()
        with self._watching:
            while True:
                self._draw()
                with anyio.move_on_after(REFRESH_SEC):
                    await self._news.wait()
                self._news.clear()
                try:
                    await self.look()
                except WorkerUnreachable as error:
                    self._lost = error.message

    # The terminal.

    def _listen(self, taken: ExitStack) -> None:
        loop = asyncio.get_running_loop()
        for number, code in ((signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            loop.add_signal_handler(number, self._leave, code)
            taken.callback(loop.remove_signal_handler, number)
        if not sys.stdin.isatty():
            return
        keyboard = taken.enter_context(Keyboard(sys.stdin.fileno()))
        loop.add_reader(keyboard.fd, self._pressed, keyboard)
        taken.callback(loop.remove_reader, keyboard.fd)
        loop.add_signal_handler(signal.SIGTSTP, self._pause, keyboard)
        taken.callback(loop.remove_signal_handler, signal.SIGTSTP)

    def _leave(self, code: int) -> None:
        """Quit at once, without waiting for requests that the worker has not answered."""
        self._code = code
        self._watching.cancel()

    def _pause(self, keyboard: Keyboard) -> None:
        """Suspend on Ctrl-Z: restore the terminal for the shell, and set it up again when the process continues."""
        with self._leaving_without_output():
            self._live.stop()
            keyboard.__exit__()
            os.kill(os.getpid(), signal.SIGSTOP)
            keyboard.__enter__()
            self._live.start()
            self._draw()

    @contextmanager
    def _leaving_without_output(self) -> Iterator[None]:
        """Quit if the terminal cannot be written, because callbacks of the event loop have no caller for an
        exception."""
        try:
            yield
        except OutputLost as lost:
            self._output_lost = lost
            self._watching.cancel()

    # Keys.

    def _pressed(self, keyboard: Keyboard) -> None:
        try:
            keys = keyboard.keys()
        except EOFError:
            self._leave(0)
            return
        for key in keys:
            match key:
                case "up" | "k":
                    self._step(-1)
                case "down" | "j":
                    self._step(+1)
                case "c":
                    self._stop_selected()
                case "g":
                    self._stop_its_group()
                case "q":
                    self._leave(0)
        with self._leaving_without_output():
            self._draw()

    def _step(self, step: int) -> None:
        self._moved_by_itself = False
        self._select(step)

    def _select(self, step: int) -> None:
        """Move the selection by `step` live jobs.

        The selection follows its job. When the job has ended, the live job in its place is selected. A key stops this
        job only if it is pressed twice, because the first press may have been meant for the job that ended.
        """
        live = self._live_jobs()
        known = [_identity(record) for record in live]
        if self._selected in known:
            self._place = known.index(self._selected)
        self._place = max(0, min(self._place + step, len(live) - 1))
        self._selected = known[self._place] if live else None

    def _live_jobs(self) -> list[Json]:
        """The jobs that can be cancelled, which the worker lists first."""
        return [record for record in self._records if record["ended_ms"] is None]

    def _chosen(self, key: str) -> Json | None:
        if self._selected is None:
            self._note = "no job is live"
            return None
        chosen = self._live_jobs()[self._place]
        if self._moved_by_itself:
            self._moved_by_itself = False
            self._note = f"the selection has moved to job {chosen['job_id']}: press {key} again to stop it"
            return None
        return chosen

    def _stop_selected(self) -> None:
        if (record := self._chosen("c")) is not None:
            self._note = f"cancelling job {record['job_id']} …"
            self._begin(self._stop_job(record))

    def _stop_its_group(self) -> None:
        if (record := self._chosen("g")) is None:
            return
        if record["group"] is None:
            self._note = f"job {record['job_id']} belongs to no group"
            return
        self._note = f"cancelling group {record['group']} …"
        self._begin(self._stop_group(record["group"]))

    def _begin(self, stopping: Coroutine[Any, Any, str]) -> None:
        async def stop() -> None:
            try:
                self._note = await stopping
                self.happened.append(self._note)
            except WorkerError as error:
                self._note = f"{error.code}: {explained(error)}"
            self._news.set()

        task = asyncio.create_task(stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _stop_job(self, record: Json) -> str:
        """Cancel a job, unless it has ended since the last update and its id now belongs to another one."""
        job_id = record["job_id"]
        with suppress(WorkerError):  # The cancel may succeed even if other requests fail.
            known = await self._client.job(job_id)
            if known is not None and _identity(known) != _identity(record):
                return f"job {job_id} had already ended, and its id now belongs to another job; nothing is stopped"
        await self._client.cancel(job_id)
        return what_happened(job_id, await self._client.job(job_id))

    async def _stop_group(self, group: str) -> str:
        receipts = await self._client.cancel(group=group)
        if not receipts:
            return f"group {group} has no live jobs; nothing to stop"
        slowest = max(receipts, key=lambda receipt: receipt.terminal_ms)
        return (
            f"group {group}: {len(receipts)} cancelled; the last, {slowest.job_id}, {receipt_line(slowest)}"
        )

    # Display.

    def _draw(self) -> None:
        self._live.update(self._seen(), refresh=True)

    def _seen(self) -> RenderableType:
        width = self._console.width
        note = job_table.wrapped(Text(printable(self._note)), width)
        room = max(1, self._console.height - _BESIDE_THE_JOBS - max(_LINES_OF_A_NOTE, len(note)))
        first = max(0, min(self._place - room // 2, len(self._records) - room))
        selected = None if self._selected is None else self._place - first
        return Group(
            self._header(),
            job_table.fitted(self._records[first : first + room], width, selected),
            *note,
            Text(_KEYS, style="dim", no_wrap=True, overflow="ellipsis"),
        )

    def _header(self) -> Text:
        if self._lost is not None:
            return Text(f"lost  {printable(self._lost)}", style="red", no_wrap=True, overflow="ellipsis")
        line = job_table.header(self._health)
        line.no_wrap, line.overflow = True, "ellipsis"
        return line


def _identity(record: Json) -> tuple[str, str]:
    """Identifies one use of a job id."""
    return record["job_id"], record["incarnation"]
