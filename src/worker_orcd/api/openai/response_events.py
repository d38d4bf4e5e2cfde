"""The events of a response's stream."""

import hashlib
from collections.abc import Iterator
from typing import Any, cast

from worker_orcd.api.openai.output_items import Added, Change, Done, Grown, OutputItem
from worker_orcd.api.openai.response_bodies import frame
from worker_orcd.api.openai.response_object import ResponseObject, logprobs_shown, response_usage, text_part
from worker_orcd.api.openai.response_request import ResponseJob
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.jobs.events import End, Error, Event, Started
from worker_orcd.jobs.job import Job

NUMBERS_PER_USE = 1 << 23
"""Number of sequence numbers for one use of an id: more than a context has tokens."""
_USES = 1 << 30
"""With this many uses, all sequence numbers are exact integers in JavaScript."""


def first_number(job: Job) -> int:
    """The first sequence number of a response.

    An id made by the worker is used once, and its numbers begin at 0. An id chosen by a client may be used again, also
    after a restart of the worker. So the numbers of each use begin at another value, and a reader can never continue
    with the events of another job.
    """
    if not cast("ResponseJob", job.request).named_by_client:
        return 0
    use = int.from_bytes(hashlib.blake2b(job.incarnation.encode(), digest_size=8).digest())
    return use % (_USES - 1) * NUMBERS_PER_USE + NUMBERS_PER_USE


class ResponseEvents:
    """The events of a response, numbered from `first_number`. Events up to `seen` are left out.

    As in the job's own stream, a reader that comes while the job is live always gets the end, even if `seen` is higher.
    """

    def __init__(self, shown: ResponseObject, seen: int | None = None) -> None:
        """Begin the events.

        Raises:
            JobError: `JOB_NOT_FOUND`: the number belongs to another use of the id.
        """
        first = first_number(shown.job)
        if seen is not None and seen // NUMBERS_PER_USE != first // NUMBERS_PER_USE:
            raise JobError(
                ErrorCode.JOB_NOT_FOUND, "this number belongs to another response with the same id"
            )
        self._shown = shown
        self._waits = shown.job.live
        self._number = first - 1
        self._seen = self._number if seen is None else seen
        self._output = shown.new_output()

    def opening(self) -> Iterator[bytes]:
        """The events before the job's first event."""
        yield from self._emit("response.created", response={**self._shown.head("queued"), "output": []})

    def emit(self, event: Event) -> Iterator[bytes]:
        """The events for one event of the job."""
        shown = self._shown
        for change in self._output.take(event):
            yield from self._change(change)
        match event:
            case Started():
                begun = {**shown.head("in_progress"), "output": []}
                yield from self._emit("response.in_progress", response=begun)
            case End():
                self._closing_events(1)
                yield from self._emit(f"response.{shown.status}", response=self._whole())
            case Error(code=code, message=message, details=details, openai_code=openai_code):
                failed = code is not ErrorCode.CANCELLED
                self._closing_events(1 + failed)
                if failed:
                    yield from self._emit("response.failed", response=self._whole())
                used = {"phase": details.get("phase"), "usage": response_usage(shown.job)}
                reported = openai_code or code.value
                yield from self._emit("error", code=reported, message=message, param=None, **used)

    def _whole(self) -> dict[str, Any]:
        items = [self._shown.item(item) for item in self._output.items]
        return {**self._shown.head(self._shown.status), "output": items}

    def _change(self, change: Change) -> Iterator[bytes]:
        item = change.item
        of_item = {"item_id": self._shown.item_id(item), "output_index": item.place}
        if item.kind == "function_call":
            name, of_part = "function_call_arguments", of_item
        else:
            name = "output_text" if item.kind == "message" else "reasoning_text"
            of_part = {**of_item, "content_index": 0}
        match change:
            case Added():
                yield from self._item_event("added", item)
                if item.kind != "function_call":
                    part = text_part(item.kind, "")
                    yield from self._emit("response.content_part.added", **of_part, part=part)
            case Grown(text=text, logprobs=logprobs):
                new = {"logprobs": logprobs_shown(logprobs)} if item.kind == "message" else {}
                yield from self._emit(f"response.{name}.delta", **of_part, delta=text, **new)
            case Done() if item.kind == "function_call":
                done = {"name": item.name, "arguments": item.text}
                yield from self._emit(f"response.{name}.done", **of_part, **done)
                yield from self._item_event("done", item)
            case Done():
                part = text_part(item.kind, item.text, item.logprobs)
                all_of_them = {"logprobs": part["logprobs"]} if item.kind == "message" else {}
                yield from self._emit(f"response.{name}.done", **of_part, text=item.text, **all_of_them)
                yield from self._emit("response.content_part.done", **of_part, part=part)
                yield from self._item_event("done", item)

    def _item_event(self, what: str, item: OutputItem) -> Iterator[bytes]:
        shown = self._shown.item(item)
        if what == "added" and "content" in shown:
            shown["content"] = []  # The part follows in its own event.
        yield from self._emit(f"response.output_item.{what}", output_index=item.place, item=shown)

    def _closing_events(self, events: int) -> None:
        if self._waits or self._seen > self._number + events:
            self._seen = min(self._seen, self._number)

    def _emit(self, kind: str, **more: Any) -> Iterator[bytes]:
        self._number += 1
        if self._number > self._seen:
            yield frame({"type": kind, "sequence_number": self._number, **more}, kind)
