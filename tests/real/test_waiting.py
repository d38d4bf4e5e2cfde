"""Jobs that wait for a place in the real engine."""

import contextlib
import json
import socket

import httpx2

from tests.helpers import at_rest, fresh_id
from worker_orcd.testing.harness import RunningWorker, wait_until
from worker_orcd.testing.trials import first_token_ms

WAITING = 400
TEXT = "".join(chr(97 + (n * n * 7919) % 26) + " " * (n % 5 == 0) for n in range(13_000))[:15_000]
"""It takes long to tokenize."""
NOT_NOTICED_MS = 500.0
"""Eight such prompts are counted by then, even on a shared machine; four hundred take seconds."""


def test_waiting_jobs_that_were_cancelled_cost_the_next_one_nothing(real_worker: RunningWorker) -> None:
    """They end in milliseconds, and the engine stops counting their prompts (G1)."""
    first_token_ms(real_worker, fresh_id("warm"))
    idle = first_token_ms(real_worker, fresh_id("idle"))
    with contextlib.ExitStack() as clients:
        for number in range(WAITING):
            body = json.dumps(
                {"job_id": f"waiting-{number}", "prompt": TEXT, "group": "all", "max_tokens": 1}
            )
            client = clients.enter_context(socket.create_connection(("127.0.0.1", real_worker.port)))
            head = f"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall((head + body).encode())
        wait_until(
            lambda: real_worker.health()["jobs_queued"] > 0.8 * WAITING, within_sec=30, what="most of them"
        )
        assert httpx2.post(f"{real_worker.url}/cancel", json={"group": "all"}).status_code == 202
        later = first_token_ms(real_worker, fresh_id("next"))
    at_rest(real_worker)
    print(f"first token after {idle:.0f} ms when idle, after {later:.0f} ms behind {WAITING} cancelled jobs")
    assert later - idle < NOT_NOTICED_MS
