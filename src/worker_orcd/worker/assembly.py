"""A worker from its options."""

from dataclasses import dataclass
from functools import partial

import msgspec

from worker_orcd import narration
from worker_orcd.jobs.request import Ceilings
from worker_orcd.protocol.messages import Ready
from worker_orcd.settings import Settings
from worker_orcd.supervisor import model_file
from worker_orcd.supervisor.early import LLAMA_ENGINE, EarlyEngine
from worker_orcd.supervisor.engine import Engine, EngineListener
from worker_orcd.supervisor.launcher import EngineLauncher
from worker_orcd.supervisor.load_order import load_order, prefix_mib
from worker_orcd.supervisor.local import StartModule, start_module, start_process
from worker_orcd.supervisor.prefix_memory import prefix_memory
from worker_orcd.worker.model_names import ModelNames
from worker_orcd.worker.observer import Observer
from worker_orcd.worker.policy import Policy
from worker_orcd.worker.recommended import recommended_sampling
from worker_orcd.worker.state_metrics import publish
from worker_orcd.worker.worker import Worker


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model file, as far as it is known without loading it.

    Attributes:
        path: of the file.
        name: the model's name in the file.
        sampling: how its makers recommend to sample.
        size_bytes: of the file.
    """

    path: str
    name: str = ""
    sampling: dict[str, float] | None = None
    size_bytes: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "CheckedModel":
        """Check the file of the options.

        Raises:
            ModelFileError: it is not one that can be loaded.
            FileNotFoundError: the bundled model is wanted and missing.
        """
        path = settings.model_path
        model = model_file.inspect(path, encoders=settings.embeddings)
        return cls(str(path), model.name, recommended_sampling(model.sampling), model.size_bytes)


@dataclass(frozen=True, slots=True)
class EngineStart:
    """How engines are started.

    Attributes:
        module: the engine to run; the scripted one for tests.
        start: runs that module as a process.
        early: the first engine, if it is started already.
    """

    module: str = LLAMA_ENGINE
    start: StartModule = start_module
    early: EarlyEngine | None = None


class _SpareKeeper(Observer):
    """Starts a spare process whenever an engine is ready."""

    def __init__(self, launcher: EngineLauncher) -> None:
        self._launcher = launcher

    def loaded(self, _ready: Ready) -> None:
        """The first engine is ready."""
        self._launcher.keep_spare()

    def restarted(self, _pid: int | None, _restarts: int, _lost_at: float) -> None:
        """A later engine is ready."""
        self._launcher.keep_spare()


def assemble(
    settings: Settings, model: CheckedModel, narrator: narration.Narrator, engines: EngineStart
) -> tuple[Worker, EngineLauncher]:
    """Make a worker, and what starts its engines. Nothing is started yet."""
    load = load_order(settings, model.path, model.size_bytes)
    early = engines.early
    store = prefix_memory(prefix_mib(settings)) if early is None else early.store
    launcher = EngineLauncher(
        partial(start_process, engines.module, engines.start, store),
        first=early,
        keeps_spare=settings.spare_engine == "on",
    )

    async def launch(listener: EngineListener) -> Engine:
        before = worker.supervisor
        again = msgspec.structs.replace(load, self_check=not before.ever_ready, costs=before.step_costs)
        return await launcher.launch(again, listener)

    worker = Worker(
        policy_of(settings),
        launch,
        narrator,
        worker_id=str(settings.worker_id),
        model_path=model.path,
        model_names=ModelNames.of(model.path, settings.model_alias, model.name),
    )
    worker.recommended_sampling = model.sampling or {}
    publish(worker, vllm_names=settings.vllm_metrics)
    worker.subscribe(_SpareKeeper(launcher))
    return worker, launcher


def policy_of(settings: Settings) -> Policy:
    """The options that concern jobs."""
    return Policy(
        ceilings=Ceilings(settings.max_tokens_out, settings.max_prompt_chars, settings.inference_timeout_sec),
        max_queue=settings.max_queue,
        cancel_deadline_sec=settings.cancel_deadline_sec,
        cancel_memory_sec=settings.cancel_memory_sec,
        drain_sec=settings.drain_sec,
        tool_format=settings.tool_format,
    )
