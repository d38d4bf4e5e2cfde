"""Jobs as Anthropic's clients expect them: whole messages, and the events of a stream."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from worker_orcd.api.anthropic.requests import NAMES
from worker_orcd.api.error_responses import anthropic_error
from worker_orcd.api.openai.response_bodies import failure_of, frame, text_of
from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.events import End, Error, Event, Started, Token
from worker_orcd.jobs.job import Job
from worker_orcd.worker.streams import JobStream, KeepAlive

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "stop_sequence": "stop_sequence"}


def usage_of(job: Job) -> dict[str, int]:
    """Tokens in and out. As in Anthropic's API, `input_tokens` does not count those that were taken from the cache."""
    prompt_tokens = job.prompt_processed or job.prompt_length or 0
    return {
        "input_tokens": prompt_tokens - job.prompt_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": job.prompt_cached,
        "output_tokens": job.tokens_out,
    }


def failure(job: Job, terminal: Error) -> JobError:
    """Why a job did not come to its natural end."""
    return failure_of(terminal, NAMES, usage_of(job))


@dataclass(slots=True)
class MessageEvents:
    """The events of one message's stream."""

    job: Job
    model: str
    stop_sequences: tuple[str, ...]
    _begun: bool = field(default=False, init=False)

    def message(self) -> dict[str, Any]:
        """The message, as the job is now."""
        text = text_of(self.job)
        end = (
            self._end()
            if isinstance(self.job.terminal, End)
            else {"stop_reason": None, "stop_sequence": None}
        )
        return self._head([{"type": "text", "text": text}] if text else []) | end

    def emit(self, event: Event) -> Iterator[bytes]:
        """What one event of the job's amounts to. The message ends with `message_stop` only at its natural end."""
        match event:
            case Started():
                message = self._head([]) | {"stop_reason": None, "stop_sequence": None}
                yield _event("message_start", message=message)
            case Token(t=text) if text:
                if not self._begun:
                    self._begun = True
                    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
            case End():
                if self._begun:
                    yield _event("content_block_stop", index=0)
                yield _event("message_delta", delta=self._end(), usage=usage_of(self.job))
                yield _event("message_stop")
            case Error():
                yield frame(anthropic_error(failure(self.job, event)), "error")

    def _head(self, content: list[dict[str, str]]) -> dict[str, Any]:
        return {
            "id": self.job.job_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "usage": usage_of(self.job),
        }

    def _end(self) -> dict[str, str | None]:
        """Why the message ended. Which of several stop sequences it was is not known."""
        terminal = self.job.terminal
        reason = terminal.stop_reason if isinstance(terminal, End) else "stop"
        one = self.stop_sequences[0] if len(self.stop_sequences) == 1 else None
        return {
            "stop_reason": _STOP_REASONS[reason],
            "stop_sequence": one if reason == "stop_sequence" else None,
        }


async def frames(stream: JobStream, events: MessageEvents, keep_alive: KeepAlive) -> AsyncIterator[bytes]:
    """A message's stream."""
    async for batch in stream.read(keep_alive):
        yield b"".join(data for _, event in batch for data in events.emit(event))


def _event(kind: str, **more: Any) -> bytes:
    return frame({"type": kind, **more}, kind)
