"""What it costs to save recurrent states before each step, so that an aborted step can be undone.

    python -m bench.saved_states [--tokens N]

Makes models with random weights and the dimensions of real ones, and has 1 and 4 sequences generate. Prints, for each,
the size of a sequence's state, how long a decode step takes with saving, how long saving takes in it, and the ratio of
the step with saving to the rest of it. Both come from the same steps, so what else runs disturbs both.
"""

import argparse
import random
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.models.engine import RecordedModel, TinyEngine, run_of, some_prompt
from tests.tiny import TinyModels

MODELS: dict[str, dict[str, Any]] = {
    # Mamba 2 130M
    "mamba2": {
        "mamba2.embedding_length": 768,
        "mamba2.block_count": 24,
        "mamba2.ssm.inner_size": 1536,
        "mamba2.ssm.state_size": 128,
        "mamba2.ssm.time_step_rank": 24,
    },
    # RWKV 7 0.1B
    "rwkv7": {
        "rwkv7.embedding_length": 768,
        "rwkv7.block_count": 12,
        "rwkv7.feed_forward_length": 3072,
    },
    # LFM2 350M: short convolutions and some attention
    "lfm2": {
        "lfm2.embedding_length": 1024,
        "lfm2.block_count": 16,
        "lfm2.feed_forward_length": 4608,
        "lfm2.attention.head_count": 16,
        "lfm2.attention.head_count_kv": [8 if layer in (2, 5, 8, 10, 12, 14) else 0 for layer in range(16)],
    },
}
PROMPT = 20
CELLS = 2048


class _Saving:
    """Adds up the time in `RecordedModel.save`."""

    def __init__(self, model: RecordedModel) -> None:
        self.ms, self.calls, self.bytes = 0.0, 0, 0
        self._save = model.save
        model.save = self  # type: ignore[method-assign]

    def __call__(self, sequence: int, into: bytearray | None = None) -> bytearray:
        began = time.perf_counter()
        saved = self._save(sequence, into)
        self.ms += (time.perf_counter() - began) * 1000
        self.calls += 1
        self.bytes = len(saved)
        return saved


def measure(path: Path, sequences: int, tokens: int) -> tuple[float, list[float], list[float]]:
    """MB of a state, and for each decode step the milliseconds that it took and those of saving in it."""
    with closing(TinyEngine(path, parallel=sequences, cells=CELLS)) as engine:
        chance = random.Random(1)
        vocabulary = engine.model.facts.vocab_size
        runs = range(1, sequences + 1)
        engine.post(
            *(run_of(n, some_prompt(chance, PROMPT, vocabulary), max_tokens=tokens + 8) for n in runs)
        )
        while not all(engine.tokens(n) for n in runs):
            engine.loop.turn()
        saving = _Saving(engine.model)
        steps: list[float] = []
        saved: list[float] = []
        for _ in range(tokens):
            saving.ms, saving.calls, began = 0.0, 0, time.perf_counter()
            engine.loop.turn()
            steps.append((time.perf_counter() - began) * 1000)
            saved.append(saving.ms)
            if saving.calls != sequences:
                raise RuntimeError(f"{saving.calls} states were saved in a step of {sequences} sequences")
        return saving.bytes / 1e6, steps, saved


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What saving recurrent states costs.")
    parser.add_argument("--tokens", type=int, default=60, help="decode steps of each measurement")
    tokens = parser.parse_args().tokens
    with tempfile.TemporaryDirectory() as folder:
        models = TinyModels(Path(folder))
        for name, metadata in MODELS.items():
            path = models.path(name, **metadata)
            for sequences in (1, 4):
                size, steps, saved = measure(path, sequences, tokens)
                step, of_it = statistics.median(steps), statistics.median(saved)
                ratio = statistics.median(a / (a - b) for a, b in zip(steps, saved, strict=True))
                print(
                    f"{name}, {sequences} sequences: a state has {size:.2f} MB, a step takes {step:.1f} ms, "
                    f"saving {of_it:.2f} ms of it: {ratio:.3f} times the step without",
                    flush=True,
                )


if __name__ == "__main__":
    main()
