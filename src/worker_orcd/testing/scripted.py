"""A scripted model without weights: deterministic, and slow, faulty or stuck as the prompt demands.

A prompt may begin with a JSON object, the script:

    {"text": "Hi 👋", "token_ms": 5}   generate this text, one byte per token, then end; 5 ms per token
    {"row_ms": 1}                       1 ms for each prompt token
    {"fail_at": 3}                      the device fails on token 3
    {"die_at": 3} / {"hang_at": 3}      the process dies / hangs forever on token 3 (0: on the first prompt row)
    {"spin_at": 3}                      the model computes forever on token 3
    {"leak": 2}                         the first two attempts to free the cells fail

Two environment variables change the whole engine: `WORKER_ORCD_SCRIPTED_LOAD_SEC` is the time of loading (negative:
loading fails), and `WORKER_ORCD_SCRIPTED_UNABORTABLE` makes steps not abortable, as on GPUs.

Without `text`, the output is `w0 w1 w2 …` until `max_tokens`. Like a real model, it keeps cells for each sequence. It
is strict: positions that are not consecutive, or too many rows, end the process.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import count, takewhile

import numpy as np

from worker_orcd.engine.counter_rng import draw_seed
from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.grammars.masks import Grammars
from worker_orcd.engine.grammars.messages import Vocabulary
from worker_orcd.engine.model import (
    ATTENTION,
    AbortMode,
    Batch,
    Memory,
    ModelLoadError,
    Operation,
    Outcome,
    Sampler,
    SidePool,
)
from worker_orcd.engine.pooling import Vector
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load, Pooling, Ready, Template
from worker_orcd.sampling import SamplingParams

END = 256
"""The end-of-generation token. Lower ids are bytes, higher ids are words."""
FIRST_WORD = 257
VOCABULARY = 50_000
DIMENSIONS = 8
"""Number of dimensions of the embeddings."""
WARM_IDS = 16
"""Sequence ids for warm prefixes."""
_SLICE_SEC = 0.0005


@dataclass(frozen=True, slots=True)
class Script:
    """The behaviour of a job."""

    text: str | None = None
    token_ms: float = 2.0
    row_ms: float = 0.05
    fail_at: int | None = None
    die_at: int | None = None
    hang_at: int | None = None
    spin_at: int | None = None
    leak: int = 0

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, prompt: str) -> "Script":
        """The script at the beginning of a prompt, or the default one."""
        if not prompt.startswith("{"):
            return cls()
        try:
            given, _ = json.JSONDecoder().raw_decode(prompt)
            return cls(**given)
        except (json.JSONDecodeError, TypeError):
            return cls()

    @property
    def fails(self) -> bool:
        """Whether the script has a failure at some token."""
        return (self.fail_at, self.die_at, self.hang_at, self.spin_at) != (None, None, None, None)

    def token(self, index: int, seed: int) -> int:
        """Token number `index` of a job with this seed."""
        if self.text is None:
            return FIRST_WORD + (index if seed == 0 else draw_seed(seed, index) % 40_000)
        said = self.text.encode()
        return said[index] if index < len(said) else END


def constrained(token: int, allowed: bytes | None) -> int:
    """This token, or the first allowed one if this one is not allowed."""
    if allowed is None or allowed[token >> 3] >> (token & 7) & 1:
        return token
    byte = next(place for place, bits in enumerate(allowed) if bits)
    return byte * 8 + next(bit for bit in range(8) if allowed[byte] >> bit & 1)


class ScriptedSampler:
    """Draws the script's tokens, or the first allowed token if the script's is not allowed."""

    def __init__(self, script: Script, sampling: SamplingParams) -> None:
        self._script = script
        self._seed = 0 if sampling.temperature == 0 else sampling.seed or 0

    def draw(self, row: int, index: int, allowed: bytes | None = None) -> int:
        """Draw token number `index`."""
        return constrained(self._script.token(index, self._seed), allowed)

    def close(self) -> None:
        """Does nothing: there are no resources."""


class ScriptedModel:
    """Counts cells like a real model, and takes time like one."""

    def __init__(self, load: Load, interrupt: InterruptByte, progress: Callable[[float], None]) -> None:
        self._interrupt = interrupt
        self._cells: dict[int, list[int]] = {}
        self._places: dict[int, list[int]] = {}
        """By sequence: the pool's cells that it holds, in order. Sequences may share cells."""
        self._place_numbers = count()
        self._batch = Batch([], [], [], [])
        self._leaked: dict[int, int] = {}
        pause = float(os.environ.get("WORKER_ORCD_SCRIPTED_LOAD_SEC", "0"))
        if pause < 0:
            raise ModelLoadError("the scripted model fails to load as configured")
        for percent in (0, 25, 50, 75, 100):
            progress(percent)
            time.sleep(pause / 4 if percent < 100 else 0)
        share = load.context_length // load.parallel if load.exact else load.context_length
        self.facts = Ready(
            model="scripted",
            device="cpu",
            resident=True,
            vram_bytes=0,
            quant_kind="none",
            tokenizer_kind="bytes",
            vocab_size=VOCABULARY,
            cells=load.context_length,
            cells_per_job=min(share, 8192),
            sequences=load.parallel,
            exact=load.exact,
            load_ms=0.0,
        )
        self.separate_streams = self.dense_ids = load.exact
        self.sequence_ids = load.parallel + (WARM_IDS if load.prefix_cache and not load.exact else 0)
        self.memory: Memory = ATTENTION
        self.layers = 30
        self.generates = True
        self.pooling: Pooling = load.pooling or "last"
        self.embeds_behind_prefix = self.pooling == "last"
        self.dimensions = DIMENSIONS
        self.grammars = Grammars(self._vocabulary)
        self.abortable = "WORKER_ORCD_SCRIPTED_UNABORTABLE" not in os.environ

    def encode(
        self,
        prompt: str,
        template: Template,
        in_hand: CurrentPrompt | None = None,  # Not used, because nothing is rendered.
    ) -> list[int]:
        """One token per byte. Of a conversation, the latest message comes first; of an infill prompt, the extra files
        come last."""
        if template == "infill":
            given = json.loads(prompt)
            files = [f"\x1c{chunk['filename']}\n{chunk['text']}" for chunk in given["extra"] or ()]
            prompt = f"{given['prefix']}\x02{given['suffix']}\x03{given['prompt']}" + "".join(files)
        if template == "messages":
            given = json.loads(prompt)
            messages = given if isinstance(given, list) else given["messages"]
            prompt = "\n".join(message["content"] for message in reversed(messages))
        return list(prompt.encode("utf-8"))

    def count_tokens(self, text: str) -> int:
        """One token per byte."""
        return len(text.encode("utf-8"))

    def piece(self, token: int) -> bytes:
        """A byte, a word, or empty."""
        if token < END:
            return bytes([token])
        return b"" if token == END else f"w{token - FIRST_WORD} ".encode()

    def name(self, token: int) -> bytes:
        """The token's piece, or the end token's name."""
        return self.piece(token) or b"<end>"

    def _vocabulary(self) -> Vocabulary:
        """All tokens, for grammars."""
        return Vocabulary([self.piece(token) or b"\xff<end>" for token in range(VOCABULARY)], [END])

    def ends_generation(self, token: int) -> bool:
        """Whether it is the end token."""
        return token == END

    def sampler(self, sampling: SamplingParams, history: list[int]) -> Sampler:
        """A sampler that follows the prompt's script."""
        return ScriptedSampler(_script(history), sampling)

    def decode(self, batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        """Write the cells, check the counts, take the time, and fail if the script demands it."""
        duration_ms = 0.0
        outcome = Outcome.DONE
        before = {sequence: len(self._cells.get(sequence, ())) for sequence in batch.sequences}
        self.write(batch)
        for sequence, length in before.items():
            script = _script(self._cells[sequence])
            rows = batch.sequences.count(sequence)
            decoding = rows == 1 and length > 0
            duration_ms += script.token_ms if decoding else script.row_ms * rows
            if not script.fails:
                continue
            place = self._place(sequence)
            if script.die_at == place:
                os._exit(9)
            while script.hang_at == place:
                time.sleep(3600)
            while script.spin_at == place:
                pass
            if script.fail_at == place:
                outcome = Outcome.FAILED
        self._batch = batch
        until = time.monotonic() + duration_ms / 1000
        while time.monotonic() < until:
            if self._aborts(abort_mode):
                return Outcome.ABORTED
            time.sleep(_SLICE_SEC)
        return outcome

    def write(self, batch: Batch) -> None:
        """Write the cells of these rows, and check the counts."""
        for token, position, sequence in zip(batch.tokens, batch.positions, batch.sequences, strict=True):
            cells = self._cells.setdefault(sequence, [])
            if position != len(cells):
                raise AssertionError(f"sequence {sequence}: position {position} after {len(cells)} cells")
            cells.append(token)
            self._places.setdefault(sequence, []).append(next(self._place_numbers))
        if sum(map(len, self._places.values())) > self.facts.cells < self.cells_in_use():
            raise AssertionError("more cells are in use than exist")

    def _aborts(self, abort_mode: AbortMode) -> bool:
        """Whether an interrupt aborts a step in this mode."""
        if not self.abortable or abort_mode is AbortMode.NONE:
            return False
        return self._interrupt.is_set() if abort_mode is AbortMode.ANY else self._interrupt.is_overdue()

    def _place(self, sequence: int) -> int:
        """The number of the token that this step yields, for a job without `text`; 0 also during the prefill."""
        return sum(token >= END for token in self._cells[sequence])

    def embedding(self, row: int) -> Vector:
        """A vector that depends on all tokens so far."""
        return np.frombuffer(self.logits(row), np.float32)[:DIMENSIONS]

    def logits(self, row: int) -> bytes:
        """Bytes that depend on all tokens so far, in the form of 32-bit floats over the vocabulary."""
        cells = self._cells[self._batch.sequences[row]][: self._batch.positions[row] + 1]
        seed = int.from_bytes(blake2b(bytes(str(cells), "ascii"), digest_size=8).digest(), "little")
        return np.random.default_rng(seed).standard_normal(VOCABULARY, np.float32).tobytes()

    @contextmanager
    def inspection(self, sequences: int, cells: int, rows: int) -> Iterator["ScriptedModel"]:
        """Yields itself, because it has no graph."""
        yield self

    def recorded(self) -> dict[Operation, set[int]]:
        """One operation, without rows."""
        return {Operation("SCRIPTED", "scripted"): set()}

    def trim(self, sequence: int, length: int) -> bool:
        """Remove the tokens after the first `length`, unless the script leaks."""
        cells = self._cells.setdefault(sequence, [])
        if length == 0 and cells and self._leaked.get(sequence, 0) < _script(cells).leak:
            self._leaked[sequence] = self._leaked.get(sequence, 0) + 1
            return False
        del cells[length:]
        del self._places.setdefault(sequence, [])[length:]
        return True

    def save(self, sequence: int, into: bytearray | None = None) -> bytearray:
        """The sequence's cells, as JSON."""
        return bytearray(json.dumps(self._cells.get(sequence, [])).encode())

    def restore(self, sequence: int, saved: bytearray) -> bool:
        """Restore saved cells."""
        self._cells[sequence] = json.loads(saved)
        self._places[sequence] = [next(self._place_numbers) for _ in self._cells[sequence]]
        return True

    def state_bytes(self, sequence: int) -> int:
        """Size of the sequence's cells, as JSON."""
        return len(self.save(sequence))

    def write_state(self, sequence: int, into: memoryview) -> int:
        """Write the sequence's cells, as JSON."""
        into[:] = self.save(sequence)
        return len(into)

    def read_state(self, sequence: int, state: memoryview) -> bool:
        """Hold those."""
        return self.restore(sequence, bytearray(state))

    def clear(self) -> None:
        """Hold nothing."""
        self._cells.clear()
        self._places.clear()

    def move(self, source: int, target: int) -> bool:
        """Move the cells to another id."""
        self._cells[target] = self._cells.pop(source, [])
        self._places[target] = self._places.pop(source, [])
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        """Share cells."""
        if self.cells(target) or length > self.cells(source):
            raise AssertionError(f"{length} cells of sequence {source} copied to {target}")
        self._cells[target] = self._cells[source][:length]
        self._places[target] = self._places[source][:length]

    def side_pool(self) -> SidePool | None:
        """None: its steps have no operations between which they could pause."""
        return None

    def is_aside(self, sequence: int) -> bool:
        """False."""
        return False

    def is_computing(self, sequence: int) -> bool:
        """False."""
        return False

    def move_aside(self, sequence: int) -> bool:
        """Not possible."""
        return False

    def move_back(self, sequence: int) -> bool:
        """Not possible."""
        return False

    def cells_in_use(self) -> int:
        """Number of the pool's cells that sequences hold; shared cells count once."""
        return len({place for places in self._places.values() for place in places})

    def cells(self, sequence: int) -> int:
        """Cells held."""
        return len(self._cells.get(sequence, ()))


def _script(tokens: list[int]) -> Script:
    """The script at the beginning of a prompt, from its byte tokens."""
    head = list(takewhile(END.__gt__, tokens[:400]))
    return Script.of(bytes(head).decode("utf-8", "replace"))
