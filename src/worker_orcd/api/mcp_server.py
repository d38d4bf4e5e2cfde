"""`/mcp`: tools for agents that supervise other agents' jobs, over the Model Context Protocol. Needs the extra `mcp`.

Each HTTP request is served by itself, without sessions. As the specification demands, the `mcp` package cancels the
handler of a request whose client closes the stream; this also ends a tool's waiting.
"""

import json
import logging
from typing import Any

from fastapi import FastAPI
from mcp.server import Server, ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import Field
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from worker_orcd import __version__
from worker_orcd.api.access import owner_of_scope
from worker_orcd.api.cancel import cancel
from worker_orcd.api.jobs import DEFAULT_LIMIT, MAX_LIMIT
from worker_orcd.api.middleware import MAX_BODY_BYTES
from worker_orcd.jobs.errors import ErrorCode, JobError, invalid
from worker_orcd.jobs.request import Body, CancelRequest, JobId
from worker_orcd.worker.interface import WorkerInterface

PATH = "/mcp"
MAX_WAIT_SEC = 300
DEFAULT_CANCEL_WAIT_SEC = 10
_Answer = dict[str, object]


class CancelTool(Body):
    """Cancel one inference job, or all live jobs of a group. Waits for the end and returns the receipt: when computing
    stopped and when memory was freed. Harmless in any state of the job, any number of times."""

    job_id: JobId | None = Field(default=None, description="the job to cancel; or `group`")
    group: JobId | None = Field(default=None, description="cancel all live jobs of this group; or `job_id`")
    wait_sec: int = Field(
        default=DEFAULT_CANCEL_WAIT_SEC, ge=0, le=MAX_WAIT_SEC, description="seconds to wait for the receipt"
    )

    async def answer(self, worker: WorkerInterface, owner: str) -> _Answer:
        """Do it."""
        named = {"job_id": self.job_id, "group": self.group}
        given = {name: value for name, value in named.items() if value is not None}
        asked = CancelRequest.parse(json.dumps(given).encode())
        body, _ = await cancel(worker, asked, owner, self.wait_sec)
        return body


class JobsTool(Body):
    """List inference jobs: live jobs, oldest first, then jobs that ended in the last minutes, latest first."""

    limit: int = Field(default=DEFAULT_LIMIT, ge=0, le=MAX_LIMIT, description="ended jobs to show")

    async def answer(self, worker: WorkerInterface, owner: str) -> _Answer:
        """Look."""
        return {"jobs": await worker.records(owner, self.limit)}


class ReceiptTool(Body):
    """Get an inference job's record: its state, times and tokens, and the receipt if it was stopped. Can wait for the
    job's end."""

    job_id: JobId
    wait_sec: int = Field(default=0, ge=0, le=MAX_WAIT_SEC, description="seconds to wait for the job's end")

    async def answer(self, worker: WorkerInterface, owner: str) -> _Answer:
        """Return the record when the job has ended or the time is up."""
        if self.wait_sec:
            await worker.receipts([self.job_id], owner, self.wait_sec)
        record = await worker.record(self.job_id, owner)
        if record is None:
            raise JobError(ErrorCode.JOB_NOT_FOUND, "no live or recently ended job has this id")
        return record


_TOOLS: dict[str, type[CancelTool] | type[JobsTool] | type[ReceiptTool]] = {
    "cancel": CancelTool,
    "jobs": JobsTool,
    "receipt": ReceiptTool,
}


def install(app: FastAPI, worker: WorkerInterface) -> None:
    """Add `/mcp` to the app, behind the same access control."""
    app.router.routes.append(Route(PATH, McpEndpoint(worker)))


class McpEndpoint:
    """The ASGI app behind `/mcp`."""

    def __init__(self, worker: WorkerInterface) -> None:
        self._worker = worker
        for name in ("mcp", "sse_starlette"):
            log = logging.getLogger(name)
            log.propagate = False  # Standard error is for the worker's own log events.
            log.addHandler(logging.NullHandler())
        self._server = Server(
            "worker-orcd",
            version=__version__,
            instructions="Supervise the inference jobs of this worker: list them, cancel them, and read receipts.",
            on_list_tools=_listed,
            on_call_tool=self._called,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, including all its tasks."""
        manager = StreamableHTTPSessionManager(
            self._server,
            stateless=True,
            # Access control has already checked `Host` and `Origin`.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            max_request_body_size=MAX_BODY_BYTES,
        )
        async with manager.run():
            await manager.handle_request(scope, receive, send)

    async def _called(
        self, context: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult:
        try:
            tool = _TOOLS.get(params.name)
            if tool is None:
                raise invalid(f"no tool is called {params.name[:64]!r}", "name")
            asked = tool.parse(json.dumps(params.arguments or {}).encode())
            if context.request is None:
                raise TypeError("the tool call has no HTTP request")
            return _result(await asked.answer(self._worker, owner_of_scope(context.request.scope)))
        except JobError as error:
            return _result(error.body(), is_error=True)


async def _listed(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(
        tools=[
            Tool(
                name=name,
                description=" ".join((tool.__doc__ or "").split()),
                input_schema=tool.model_json_schema(),
                annotations=ToolAnnotations(
                    read_only_hint=tool is not CancelTool,
                    destructive_hint=tool is CancelTool,
                    idempotent_hint=True,
                    open_world_hint=False,
                ),
            )
            for name, tool in _TOOLS.items()
        ]
    )


def _result(answer: _Answer, *, is_error: bool = False) -> CallToolResult:
    text = TextContent(type="text", text=json.dumps(answer))
    return CallToolResult(content=[text], structured_content=answer, is_error=is_error)
