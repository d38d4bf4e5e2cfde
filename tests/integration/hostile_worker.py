"""A worker that attacks its clients' terminals: each text in its answers contains escape sequences."""

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ACTS = ("\x1b]0;owned\x07", "\x1b[31;5m", "\x9b2J", "\x08", "\x7f", "\r", "\u202e", "\u2066")
"""Set the title, blink in red, clear the screen, rub out, overwrite the line, reorder what follows."""
EVIL = f"evil{''.join(ACTS)}\nevil"

Json = dict[str, Any]

RECEIPT: Json = {
    "reason": EVIL,
    "phase": EVIL,
    "stopped_ms": 1.0,
    "freed_ms": 1.0,
    "terminal_ms": 1.0,
    "prompt_tokens": 1,
    "tokens_out": 1,
    "kv_cells_before": 1,
    "kv_cells_after": 0,
    "cancel_correlation_id": EVIL,
}
HEALTH: Json = {
    **dict.fromkeys(
        ("status", "reason", "worker_id", "model", "device", "quant_kind", "tokenizer_kind"), EVIL
    ),
    **dict.fromkeys(("kv_cells_used", "kv_cells_total", "jobs_running", "jobs_queued", "engine_pid"), 1),
    "engine_restarts": 0,
}


def record(job_id: str, ended_ms: float | None = 1.0) -> Json:
    """A job's record."""
    texts = dict.fromkeys(("state", "phase", "group", "accepted_at", "incarnation"), EVIL)
    numbers = dict.fromkeys(("prompt_tokens", "prompt_tokens_processed", "tokens_out"), 1)
    return {"job_id": job_id, **texts, **numbers, "ended_ms": ended_ms, "receipt": RECEIPT}


class HostileWorker(BaseHTTPRequestHandler):
    """Answers everything that a worker answers, with shapes that are right and texts that are not.

    A word in the request, such as `failed`, `stopped`, `refused` or `unknown`, decides how it goes.
    """

    def do_GET(self) -> None:
        """Health, models, jobs, narration."""
        match self.path.partition("?")[0]:
            case "/health":
                self._json(HEALTH)
            case "/v1/models":
                self._json(
                    {"data": [{"id": EVIL, "recommended_sampling": {"temperature": EVIL, EVIL: EVIL}}]}
                )
            case "/jobs":
                self._json({"jobs": [record(EVIL, None), record(EVIL)]})
            case "/narration":
                level = {"level": "ERROR", "traceback": EVIL}
                reported = dict.fromkeys(
                    ("time", "process", "action", "human", "code", "message", EVIL), EVIL
                )
                self._stream([("narrated", reported | level), ("narrated", reported | {"level": EVIL})])
            case path if "refused" in path:
                self._refuse()
            case path if "unknown" in path:
                self._json({}, 404)
            case _:
                self._json(record(EVIL))

    def do_POST(self) -> None:
        """Jobs and cancels."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = json.dumps(body)
        self.remember(body)
        error = {"code": EVIL, "message": EVIL, "retriable": False, "reason": EVIL, "phase": EVIL}
        if "stopped" in asked:
            error["code"] = "CANCELLED"
        if "refused" in asked:
            self._refuse()
        elif self.path == "/cancel" and "group" in body:
            self._json({"jobs": [{"job_id": EVIL, "receipt": RECEIPT}]})
        elif self.path == "/cancel":
            self._json({"status": EVIL, "job_id": EVIL}, 202)
        elif self.path == "/execute":
            end = {"tokens_out": 1, "decode_time_ms": 1, "stop_reason": EVIL}
            last = ("error", error) if "failed" in asked or "stopped" in asked else ("end", end)
            started = {"job_id": EVIL, "model": EVIL, "seed": 1, "started_at": EVIL}
            self._stream([("started", started), ("token", {"t": EVIL, "i": 0}), last])
        elif "failed" in asked or "stopped" in asked:
            self._stream([("", {"error": error})])
        else:
            choice = {"index": 0, "finish_reason": None, "delta": {"content": EVIL}}
            usage = {"completion_tokens": 1}
            ending = {"choices": [{**choice, "delta": {}, "finish_reason": EVIL}], "usage": usage}
            self._stream([("", {"model": EVIL, "choices": [choice]}), ("", ending), ("", "[DONE]")])

    def remember(self, body: Json) -> None:
        """The request's path."""

    def _refuse(self) -> None:
        self._json({"error": {"code": EVIL, "message": EVIL, "retriable": False}}, 400)

    def _json(self, body: Json, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("X-Correlation-Id", "evil\x9b2J")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, events: list[tuple[str, Json | str]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number, (name, data) in enumerate(events):
            text = data if isinstance(data, str) else json.dumps(data)
            self.wfile.write(f"id: evil\x1b[31;5m.{number}\nevent: {name}\ndata: {text}\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def hostile_worker() -> AbstractContextManager[str]:
    """One that listens until the end, and its address."""
    return serving(HostileWorker)


@contextmanager
def serving(handler: type[HostileWorker]) -> Iterator[str]:
    """Serve what a handler answers. Yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
