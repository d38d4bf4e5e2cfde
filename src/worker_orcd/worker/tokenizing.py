"""Tokenizing for clients: the engine prepares a prompt without a job."""

import asyncio
from itertools import count

from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.protocol.messages import Rejected, Template, Tokenize, Tokenized
from worker_orcd.supervisor.supervisor import EngineState, Supervisor
from worker_orcd.worker.wire import refusal

MAX_TOKENIZING = 4
"""The most requests at a time. The engine has more threads, so jobs' prompts do not wait for these requests."""
PATIENCE_SEC = 10.0


class Tokenizing:
    """Requests that the engine has not answered. Their numbers are lower than those of all runs."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._numbers = count(-1, -1)
        self._waiting: dict[int, asyncio.Future[Tokenized | Rejected]] = {}

    async def prepare(self, prompt: str, template: Template, correlation_id: str, owner: str) -> Tokenized:
        """The tokens of a prompt, and the bytes that show each token.

        Raises:
            JobError: `INVALID_REQUEST`, `QUEUE_FULL`, or `ENGINE_LOST` (503) while no engine is ready.
        """
        if self._supervisor.state is not EngineState.READY:
            raise no_engine()
        if len(self._waiting) >= MAX_TOKENIZING:
            raise JobError(ErrorCode.QUEUE_FULL, "too many prompts are being tokenized", retry_after_sec=1)
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._supervisor.prepare(Tokenize(number, correlation_id, prompt, template, owner))
            prepared: Tokenized | Rejected = await asyncio.wait_for(answer, PATIENCE_SEC)
        except TimeoutError:
            raise no_engine() from None
        finally:
            del self._waiting[number]
            if not answer.done() or answer.cancelled():
                self._supervisor.drop(number)
        if isinstance(prepared, Rejected):
            raise refusal(prepared)
        return prepared

    def answered(self, message: Tokenized | Rejected) -> bool:
        """Handle an answer. Returns False if it belongs to a job."""
        waiting = self._waiting.get(message.run)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)
        return message.run < 0

    def engine_lost(self) -> None:
        """The engine is dead: fail all requests."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(no_engine())


def no_engine() -> JobError:
    """The refusal of a request that needs an engine, while none is ready."""
    return JobError(ErrorCode.ENGINE_LOST, "no engine is ready", http_status=503, retry_after_sec=1)
