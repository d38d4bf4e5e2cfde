"""The least that llama.cpp needs for the same tokens: one loop, the same calls, nothing around them.

    python bench/bare_loop.py decode STREAMS TOKENS EXACT | prefill EXACT

Prints tokens per second. `cancel.py` runs it beside the worker.
"""

import sys
import time

from worker_orcd.engine.llama import LlamaModel
from worker_orcd.engine.model import AbortMode, Batch
from worker_orcd.engine.planner import MAX_ROWS
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load
from worker_orcd.sampling import SamplingParams
from worker_orcd.settings import available_cores, bundled_model
from worker_orcd.testing.trials import STORY, long_prompt


def load(*, exact: bool) -> LlamaModel:
    """The bundled model, as the worker loads it."""
    cells = 65536 if exact else 16384
    order = Load(str(bundled_model()), "bare", None, 16, cells, exact, available_cores(), "json")
    return LlamaModel(order, InterruptByte.create(), lambda _percent: None)


def prefill(model: LlamaModel, sequence: int, tokens: list[int]) -> None:
    """Read a prompt in the largest steps there are."""
    for start in range(0, len(tokens), MAX_ROWS):
        chunk = tokens[start : start + MAX_ROWS]
        wanted = [False] * len(chunk)
        wanted[-1] = start + len(chunk) == len(tokens)
        model.decode(
            Batch(chunk, list(range(start, start + len(chunk))), [sequence] * len(chunk), wanted),
            abort_mode=AbortMode.NONE,
        )


def decode_rate(model: LlamaModel, streams: int, tokens: int) -> float:
    """Tokens per second of so many streams together, each sampled and put into text."""
    prompt = model.encode(STORY, "auto")
    samplers = [
        model.sampler(SamplingParams(temperature=0.7, top_k=40, seed=n), prompt) for n in range(streams)
    ]
    last = []
    for n in range(streams):
        prefill(model, n, prompt)
        last.append(samplers[n].draw(len(prompt) - 1, 0))
    started = time.perf_counter()
    for index in range(1, tokens):
        positions = [len(prompt) + index - 1] * streams
        model.decode(
            Batch(last, positions, list(range(streams)), [True] * streams), abort_mode=AbortMode.NONE
        )
        last = [samplers[n].draw(n, index) for n in range(streams)]
        for token in last:
            model.piece(token)
    return streams * (tokens - 1) / (time.perf_counter() - started)


def prefill_rate(model: LlamaModel) -> float:
    """Prompt tokens per second of one long prompt, its first token drawn."""
    tokens = model.encode(long_prompt(0), "none")
    sampler = model.sampler(SamplingParams(seed=0), tokens)
    started = time.perf_counter()
    prefill(model, 0, tokens)
    sampler.draw((len(tokens) - 1) % MAX_ROWS, 0)
    return len(tokens) / (time.perf_counter() - started)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    model = load(exact=rest[-1] == "1")
    prefill(model, 0, model.encode("warm up", "none"))
    model.trim(0, 0)
    print(decode_rate(model, int(rest[0]), int(rest[1])) if what == "decode" else prefill_rate(model))
