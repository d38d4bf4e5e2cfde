"""What people write who have llama-servers and Ray Serve: an ingress that sends each request to one of them.

python -m bench.fleet.plain_serve PORT URL...
"""

import itertools
import sys
from collections.abc import AsyncIterator, Sequence

import httpx2
import ray
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from ray import serve

PATH = "/v1/chat/completions"
app = FastAPI()


@serve.deployment(num_replicas=2, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Ingress:
    """One of two replicas, which take the servers in turns."""

    def __init__(self, servers: Sequence[str]) -> None:
        self._http = httpx2.AsyncClient(timeout=None, trust_env=False)
        self._servers = itertools.cycle(servers)

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        """It runs."""
        return {"status": "ok"}

    @app.post(PATH)
    async def complete(self, request: Request) -> Response:
        """The server's answer."""
        body = await request.json()
        url = next(self._servers) + PATH
        if body.get("stream"):
            return StreamingResponse(self._streamed(url, body), media_type="text/event-stream")
        answer = await self._http.post(url, json=body)
        return Response(answer.content, answer.status_code, media_type="application/json")

    async def _streamed(self, url: str, body: dict[str, object]) -> AsyncIterator[bytes]:
        async with self._http.stream("POST", url, json=body) as answer:
            async for piece in answer.aiter_raw():
                yield piece


def main() -> None:
    """Serve until a signal."""
    port, servers = int(sys.argv[1]), sys.argv[2:]
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024 * 1024, logging_level="warning"
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})
    serve.run(Ingress.bind(servers), blocking=True)


if __name__ == "__main__":
    main()
