"""A real model in the real engine loop, in this process; every row of logits that a token is drawn from is kept."""

import io
import random
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from tests.loop_reports import LoopReports, run_of_tokens
from worker_orcd.engine.llama import LlamaModel
from worker_orcd.engine.loop import EngineLoop
from worker_orcd.engine.model import AbortMode, Batch, Outcome, Sampler
from worker_orcd.engine.prefix_store import PrefixStore
from worker_orcd.engine.run import Run
from worker_orcd.narration import Narrator
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load, Ping, Step, Stop
from worker_orcd.sampling import SamplingParams

Logits = npt.NDArray[np.float32]

_kept: list[object] = []
"""llama.cpp calls the log function of the model that was loaded last, also after that model is gone."""


class _RecordingSampler:
    """Notes the logits that a run's tokens are drawn from."""

    def __init__(self, inner: Sampler, model: "RecordedModel", run: int) -> None:
        self._inner, self._model, self._run = inner, model, run

    def draw(self, row: int, index: int, allowed: bytes | None = None) -> int:
        self._model.drawn[self._run].append(np.frombuffer(self._model.logits(row), np.float32).copy())
        return self._inner.draw(row, index, allowed)

    def close(self) -> None:
        self._inner.close()


class RecordedModel(LlamaModel):
    """llama.cpp's model; a run's number is its seed."""

    def __init__(self, load: Load, interrupt: InterruptByte) -> None:
        self.drawn: dict[int, list[Logits]] = defaultdict(list)
        super().__init__(load, interrupt, lambda percent: None)
        _kept.append(self._backend_log)

    def sampler(self, sampling: SamplingParams, history: list[int]) -> Sampler:
        """A sampler that notes what it draws from."""
        return _RecordingSampler(super().sampler(sampling, history), self, sampling.seed or 0)

    def alone(self, tokens: list[int], wanted_from: int) -> list[Logits]:
        """Logits behind each token from number `wanted_from` on, computed in one go while nothing else is held."""
        wanted = [index >= wanted_from for index in range(len(tokens))]
        batch = Batch(tokens, list(range(len(tokens))), [0] * len(tokens), wanted)
        assert self.decode(batch, abort_mode=AbortMode.NONE) is Outcome.DONE
        rows = [np.frombuffer(self.logits(row), np.float32).copy() for row in range(wanted_from, len(tokens))]
        self.trim(0, 0)
        return rows

    def wait_for_side_pool(self) -> None:
        """Make the side pool, if the model may have one. A worker computes without it until it is there."""
        while self.may_have_side_pool and self.side_pool() is None:
            time.sleep(0.001)

    def lowest(self, sequence: int) -> int:
        """The lowest position that llama.cpp still has of a sequence in every layer."""
        return int(lib.llama_memory_seq_pos_min(lib.llama_get_memory(self._context), sequence))

    def free(self) -> None:
        """Free the model's memory."""
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)


class TinyEngine(LoopReports):
    """The loop around a recorded model, turned by hand, with all messages that it sent."""

    def __init__(  # noqa: PLR0913  # all that an engine is made of
        self,
        path: Path,
        *,
        exact: bool = False,
        parallel: int = 6,
        cells: int = 4096,
        threads: int = 1,
        store: int | None = None,
        side_cells: int | None = None,
    ) -> None:
        super().__init__()
        self.byte = InterruptByte.create()
        beside = cells if side_cells is None else side_cells
        load = Load(str(path), "worker", None, parallel, cells, exact, threads, "json", side_cells=beside)
        self.model: RecordedModel = RecordedModel(load, self.byte)
        self.model.wait_for_side_pool()
        self.aborts_at_once = False
        """Whether the byte is set before each step begins: an abortable one ends with its first graph node."""
        narrator = Narrator.configure("worker", process="engine", log_format="json", stream=io.StringIO())
        found = None if store is None else PrefixStore(store, b"tiny")
        self.loop = EngineLoop(self.model, self.byte, self._drain, self.sent.append, narrator, store=found)
        self.loop.warm_up.first_rows()
        self.loop.warm_up.measure()

    def _drain(self) -> list[Run | Stop | Ping]:
        if self.aborts_at_once:
            self.byte.set()
        messages, self.inbox = self.inbox, []
        return messages

    def post(self, *messages: Run | Stop | Ping) -> None:
        """Send messages; the next turn sees them."""
        self.inbox += messages

    def interrupted_turn(self, after_sec: float) -> bool:
        """One turn, with the byte set so long after its start. Whether the step was aborted."""
        timer = threading.Thread(target=self._interrupt, args=(after_sec,))
        timer.start()
        self.loop.turn()
        timer.join()
        last = self.sent[-1] if self.sent else None
        return isinstance(last, Step) and last.aborted

    def _interrupt(self, after_sec: float) -> None:
        until = time.monotonic() + after_sec
        while time.monotonic() < until:
            time.sleep(min(0.0005, after_sec))
        self.byte.set()

    def close(self) -> None:
        """Free the model and unmap the byte."""
        self.model.free()
        self.byte.close()


def run_of(run: int, prompt: list[int], **given: Any) -> Run:
    """Generate greedily, past end-of-generation tokens."""
    greedy = SamplingParams(temperature=0.0, seed=run, ignore_eos=True)
    usual: dict[str, Any] = {"max_tokens": 12, "sampling": greedy}
    return run_of_tokens(run, tuple(prompt), **usual | given)


def some_prompt(chance: random.Random, length: int, vocabulary: int) -> list[int]:
    """Tokens all over the vocabulary."""
    return [chance.randrange(vocabulary) for _ in range(length)]
