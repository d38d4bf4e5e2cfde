"""Jobs in OpenAI's format: complete response bodies, and the chunks of a stream."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar

import msgspec

from worker_orcd.api.error_responses import openai_error
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import End, Error, Event, Progress, Started, Token
from worker_orcd.jobs.job import Job
from worker_orcd.sampling import Logprobs, logprobs_data
from worker_orcd.worker.streams import JobStream, KeepAlive, read_together

DONE = b"data: [DONE]\n\n"
FINISH_REASONS = {"stop": "stop", "stop_sequence": "stop", "length": "length"}
_encoder = msgspec.json.Encoder()


def text_of(job: Job) -> str:
    """The text of a job so far."""
    return "".join(event.t for event in job.events if isinstance(event, Token))


def usage_of(jobs: Sequence[Job], choices: int = 1) -> dict[str, Any]:
    """The numbers of prompt and output tokens of several jobs. Of a stopped job, only computed prompt tokens count.

    Every `choices` consecutive jobs have the same prompt, which counts once. `cached_tokens` are the prompt tokens that
    even the first of these jobs did not compute.
    """
    prompts = [jobs[n : n + choices] for n in range(0, len(jobs), choices)]
    tokens_in = sum(max(job.prompt_processed for job in siblings) for siblings in prompts)
    cached = sum(min(job.prompt_cached for job in siblings) for siblings in prompts)
    out = sum(job.tokens_out for job in jobs)
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": out,
        "total_tokens": tokens_in + out,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def logprobs_content(events: Sequence[Event]) -> list[dict[str, object]]:
    """Log probabilities of the tokens among these events, in the format of chat completions and responses."""
    return [logprobs_data(event.logprobs) for event in events if isinstance(event, Token) and event.logprobs]


def _by_text(logprobs: Logprobs) -> dict[str, float | None]:
    """The most likely tokens and the chosen one, by their text, as in vLLM."""
    return {one.text: one.logprob for one in (*logprobs[1:], logprobs[0])}


def frame(data: dict[str, Any], event: str | None = None) -> bytes:
    """One server-sent event."""
    named = b"" if event is None else b"event: " + event.encode() + b"\n"
    return named + b"data: " + _encoder.encode(data) + b"\n\n"


def failure_of(terminal: Error, names: Mapping[str, str], usage: dict[str, Any]) -> JobError:
    """The error response for a job that did not reach its natural end, if the request is not streamed.

    Args:
        terminal: the job's terminal event.
        names: the API's names of a job's fields, where they differ.
        usage: the `usage` until then.
    """
    at_fault = terminal.details.get("param")
    return JobError(
        terminal.code,
        terminal.message,
        param=None if at_fault is None else names.get(str(at_fault), str(at_fault)),
        # LangChain.js and LiteLLM's router retry after 499. After 400, LangChain.js does not.
        http_status=400 if terminal.code is ErrorCode.CANCELLED else None,
        details={"usage": usage},
        openai_code=terminal.openai_code,
    )


@dataclass(frozen=True, slots=True)
class Completion:
    """The response bodies of `POST /v1/completions`."""

    name: str
    model: str
    created: int
    choices: int
    include_usage: bool
    names: Mapping[str, str] = field(default_factory=dict)
    """The API's names of a job's fields, where they differ."""
    echo: Sequence[str | None] = ()
    """By choice, the prompt with which it begins; None: the text of the prompt's tokens."""
    offsets: dict[int, int] = field(default_factory=dict)
    """By choice, the number of characters of the tokens whose log probabilities were sent."""
    last: ClassVar[bytes] = DONE
    """The last bytes of a stream with a natural end."""

    def whole(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The non-streaming response, once all jobs have ended."""
        choices = [self._whole(place, job) for place, job in enumerate(jobs)]
        return {**self._head(""), "choices": choices, "usage": usage_of(jobs, self.choices)}

    def chunks(self, place: int, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of one event of one choice."""
        match event:
            case Started():
                yield from self._opening(place)
            case Progress():
                yield {**self._chunk(place, self._delta(""), None), "prompt_progress": progress_data(event)}
            case Token(t=text, logprobs=logprobs) if text or logprobs:
                yield self._chunk(place, self._delta(text), None, [event])
            case End(stop_reason=reason):
                yield self._chunk(place, self._delta(""), FINISH_REASONS[reason])

    def held(self) -> Iterator[dict[str, Any]]:
        """Chunks with held-back text, for a stream that ends with an error."""
        return iter(())

    def failure(self, terminal: Error, jobs: Sequence[Job]) -> JobError:
        """The error response for a job that did not reach its natural end, with the `usage` of all jobs."""
        return failure_of(terminal, self.names, usage_of(jobs, self.choices))

    def closing(self, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """The last chunks of a stream in which every choice reached its natural end."""
        if self.include_usage:
            yield self.usage(jobs)

    def usage(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The chunk with `usage`."""
        return {**self._head(".chunk"), "choices": [], "usage": usage_of(jobs, self.choices)}

    def _object(self, chunk: str) -> str:  # noqa: ARG002  # Chunks of completions are called the same.
        return "text_completion"

    def _head(self, chunk: str) -> dict[str, Any]:
        return {"id": self.name, "object": self._object(chunk), "created": self.created, "model": self.model}

    def _whole(self, place: int, job: Job) -> dict[str, Any]:
        prompt, scored = self._echoed(place, job)
        logprobs = self._logprobs(place, [*scored, *job.events])
        text = prompt + text_of(job)
        return {"index": place, "text": text, "logprobs": logprobs, "finish_reason": finish_reason(job)}

    def echo_chunk(self, place: int, job: Job) -> dict[str, Any]:
        """The chunk with the prompt, once it is computed."""
        prompt, scored = self._echoed(place, job)
        return self._chunk(place, self._delta(prompt), None, scored)

    def _echoed(self, place: int, job: Job) -> tuple[str, list[Event]]:
        """The prompt's text with which a choice begins, and its tokens' log probabilities, as events."""
        if not self.echo:
            return "", []
        pieces = b"".join(logprobs[0].piece for logprobs in job.prompt_logprobs)
        prompt = self.echo[place]
        wanted = job.prompt_logprobs if job.request.logprobs is not None else []
        return pieces.decode("utf-8", "replace") if prompt is None else prompt, [
            Token("", 0, logprobs) for logprobs in wanted
        ]

    def _opening(self, place: int) -> Iterator[dict[str, Any]]:  # noqa: ARG002  # A completion has none.
        return iter(())

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, place: int, events: Sequence[Event]) -> dict[str, Any] | None:
        """Log probabilities of the tokens among these events. Called with a choice's events in order."""
        found = [event.logprobs for event in events if isinstance(event, Token) and event.logprobs]
        if not found:
            return None
        offset = self.offsets.get(place, 0)
        lengths = [len(tokens[0].text) for tokens in found]
        self.offsets[place] = offset + sum(lengths)
        return {
            "tokens": [tokens[0].text for tokens in found],
            "token_logprobs": [tokens[0].logprob for tokens in found],
            "top_logprobs": [None if tokens[0].logprob is None else _by_text(tokens) for tokens in found],
            "text_offset": list(accumulate(lengths[:-1], initial=offset)),
        }

    def _chunk(
        self, place: int, delta: dict[str, Any], finish: str | None, events: Sequence[Event] = ()
    ) -> dict[str, Any]:
        choice = {
            "index": place,
            **delta,
            "logprobs": self._logprobs(place, events),
            "finish_reason": finish,
        }
        more = {"usage": None} if self.include_usage else {}
        return {**self._head(".chunk"), "choices": [choice], **more}


async def stream(
    body: Completion, streams: Sequence[JobStream], keep_alive: KeepAlive
) -> AsyncIterator[bytes]:
    """A request's stream. If every choice reaches its natural end, the stream ends with `last` (`[DONE]`). The first
    choice with another end ends the stream with one error chunk."""
    jobs = [one.job for one in streams]
    to_echo = set(range(len(body.echo)))
    async for batch in read_together(streams, keep_alive):
        frames: list[bytes] = []
        for place, _, event in batch:
            if isinstance(event, Error):
                frames += [frame(chunk) for chunk in body.held()]
                if body.include_usage:
                    frames.append(frame(body.usage(jobs)))
                frames.append(frame(openai_error(body.failure(event, jobs))))
                yield b"".join(frames)
                return
            if place in to_echo and isinstance(event, Token | End):
                to_echo.remove(place)
                frames.append(frame(body.echo_chunk(place, jobs[place])))
            frames += [frame(chunk) for chunk in body.chunks(place, event)]
        yield b"".join(frames)
    for chunk in body.closing(jobs):
        yield frame(chunk)
    yield body.last


def progress_data(event: Progress) -> dict[str, Any]:
    """Prompt progress in llama-server's format, in which `processed` includes cached tokens."""
    return {
        "total": event.prompt_tokens,
        "cache": event.cached,
        "processed": event.processed,
        "time_ms": event.time_ms,
    }


def finish_reason(job: Job) -> str | None:
    """The reason of a job's natural end, in OpenAI's terms; None for another end."""
    return FINISH_REASONS[job.terminal.stop_reason] if isinstance(job.terminal, End) else None
