"""How `execute` and `chat` sample: as the model's file recommends, unless a flag says otherwise."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from tests.integration.hostile_worker import HostileWorker, serving
from tests.terminal import run
from tests.tiny import TinyModels
from worker_orcd.cli.sampling import FALLBACK
from worker_orcd.testing.harness import running_worker

SAMPLING = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}


class Asked(HostileWorker):
    """A worker whose model recommends sampling values, and the jobs that were sent to it."""

    models: ClassVar[Any] = None
    bodies: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:  # noqa: N802  # the library names it
        """Only its models are of interest."""
        if self.path != "/v1/models":
            super().do_GET()
        elif self.models is None:
            self._json({"error": {"code": "INVALID_REQUEST", "message": "no", "retriable": False}}, 404)
        else:
            self._json({"data": self.models})

    def remember(self, body: dict[str, Any]) -> None:
        """Keep the request."""
        self.bodies.append(body)


@contextmanager
def recommending(models: Any) -> Iterator[str]:
    """A worker with these models. Yields its address."""
    Asked.models = models
    Asked.bodies.clear()
    with serving(Asked) as url:
        yield url


def asked_for(models: Any, *words: str) -> dict[str, Any]:
    """The sampling fields of the request that a command sent."""
    with recommending(models) as url:
        run(*words, stdin="hello\n", worker=None, WORKER_ORCD_URL=url)
    (body,) = Asked.bodies
    return {name: value for name, value in body.items() if name in SAMPLING}


@pytest.mark.parametrize("command", [("execute", "hello"), ("chat",)], ids=["execute", "chat"])
def test_a_job_is_sampled_as_the_model_recommends_and_flags_win(command: tuple[str, ...]) -> None:
    """Each flag by itself; fields without a flag stay as recommended."""
    recommended = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05}
    models = [{"id": "m", "recommended_sampling": recommended}]
    assert asked_for(models, *command) == recommended
    assert asked_for(models, *command, "--temperature", "0") == recommended | {"temperature": 0.0}


@pytest.mark.parametrize(
    "models", [None, [], [{"id": "m"}], [{"id": "m", "recommended_sampling": {}}]], ids=str
)
def test_without_a_recommendation_a_small_model_still_makes_sense(models: Any) -> None:
    """Also with a worker that reports no recommendations."""
    assert asked_for(models, "execute", "hello") == FALLBACK


@pytest.mark.real
def test_the_models_file_is_where_it_comes_from(tiny_models: TinyModels) -> None:
    """Values that no job may ask for are left out. The defaults of `POST /execute` do not change."""
    keys = {"temp": 0.65, "top_k": 40, "top_p": 7.5, "penalty_repeat": 1.1, "mirostat_tau": 5.0}
    metadata: dict[str, Any] = {f"general.sampling.{name}": value for name, value in keys.items()}
    path = tiny_models.path("llama", **metadata)
    with running_worker("llama", model=path, parallel=2, context_length=1024, threads=1) as worker:
        (listed,) = worker.client.get("/v1/models").json()["data"]
        assert listed["recommended_sampling"] == {"temperature": 0.65, "top_k": 40, "repetition_penalty": 1.1}
        shown = run("execute", "hello", "--max-tokens", "2", "--json", worker=worker)
        assert json.loads(shown.stdout.splitlines()[-1])["event"] == "end"
