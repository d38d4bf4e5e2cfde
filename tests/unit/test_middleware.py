"""Failures behind the middleware: at most one answer, and always a log event."""

import asyncio
import io
import json
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from worker_orcd.api.middleware import ErrorMiddleware
from worker_orcd.jobs.errors import ErrorCode, JobError
from worker_orcd.narration import Narrator

SCOPE = {"type": "http", "path": "/", "method": "GET", "headers": []}


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    "error", [JobError(ErrorCode.QUEUE_FULL, "too many"), RuntimeError("a bug")], ids=["refusal", "bug"]
)
def test_an_error_is_answered_once_and_only_before_the_answer_has_begun(
    started: bool, error: Exception
) -> None:
    """A second `http.response.start` would be an error of its own, and hide the first."""
    log = io.StringIO()
    refused: list[JobError] = []
    sent: list[Any] = []

    def refuse(error: JobError, path: str) -> Response:
        refused.append(error)
        return JSONResponse({"path": path}, status_code=error.http_status)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        raise error

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    narrator = Narrator.configure("w", log_format="json", stream=log)
    asyncio.run(ErrorMiddleware(app, refuse, narrator)(dict(SCOPE), receive, send))
    narrator.flush()
    starts = [message["status"] for message in sent if message["type"] == "http.response.start"]
    assert starts == ([200] if started else [429 if isinstance(error, JobError) else 500])
    reported = [json.loads(line) for line in log.getvalue().splitlines()]
    assert len(refused) + len(reported) == 1
