"""llama.cpp behind the `Model` interface. Only this file and `encoder.py` use its bindings."""

import ctypes
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worker_orcd.engine.bindings import bindings
from worker_orcd.engine.cell_pool import PARTIAL, CellPool, moved
from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.generative import require_decoder, require_memory
from worker_orcd.engine.grammars.masks import Grammars
from worker_orcd.engine.inspection import GraphInspection, Recorder
from worker_orcd.engine.model import (
    AbortMode,
    Batch,
    Memory,
    MemoryKind,
    ModelLoadError,
    Outcome,
    Sampler,
)
from worker_orcd.engine.planner import MAX_ROWS
from worker_orcd.engine.pooling import Vector
from worker_orcd.engine.prompt_encoder import PromptEncoder
from worker_orcd.engine.row_buffers import OUTCOMES, RowBuffers
from worker_orcd.engine.sampler import LlamaSampler
from worker_orcd.engine.side_pool import LlamaSidePool
from worker_orcd.engine.tokenizer import Tokenizer
from worker_orcd.engine.weights import Weights
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load, Pooling, Ready, Template
from worker_orcd.sampling import SamplingParams

lib = bindings()
WARM_IDS = 16
"""Sequence ids in addition to those of the runs: this many prefixes can stay warm while all runs compute."""
_BF16, _F16 = 30, 1

_strlen = ctypes.CDLL(None).strlen
_never = ctypes.create_string_buffer(2)
"""A byte that is never set. ggml checks it during a step that is not abortable."""


class LlamaModel:
    """One model, one context, `parallel` sequences."""

    def __init__(
        self,
        load: Load,
        interrupt: InterruptByte,
        progress: Callable[[float], None],
        weights: Weights | None = None,
    ) -> None:
        """Load the model.

        Args:
            load: which model and how.
            interrupt: ends a running step when set.
            progress: called with the percentage that is loaded, after each tensor.
            weights: the model's weights, if they are already loaded.

        Raises:
            ModelLoadError: with llama.cpp's reason, if it logs one.
        """
        started = time.monotonic()
        self._interrupt, self._load = interrupt, load
        weights = weights or Weights(lib, load, progress)
        self._weights, self._backend_log, self._model = weights, weights.backend_log, weights.model
        require_decoder(lib, self._model, load.model_path, weights.architecture)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.sequence_ids = self._sequence_ids(load)
        with ThreadPoolExecutor(1, "context") as beside:
            making = beside.submit(self._make_context, load)  # Zeroes all cells: as long as the rest.
            self._read_vocabulary()
            self._context = making.result()
        self._pool = CellPool(lib, self._context, self._open_memory())
        self._side: LlamaSidePool | None = None
        self._making_side: Future[LlamaSidePool] | None = None
        self.dimensions = int(lib.llama_model_n_embd_out(self._model))
        self._watched = {
            AbortMode.NONE: ctypes.addressof(_never),
            AbortMode.OVERDUE: interrupt.overdue_address,
            AbortMode.ANY: interrupt.address,
        }
        # ggml calls the abort callback about a thousand times per step. libc's strlen(p) is 0 or 1 when p points at
        # the interrupt byte followed by a NUL: a native callback that needs neither a compiler nor the GIL.
        self._abort = ctypes.cast(_strlen, lib.ggml_abort_callback)
        self._rows = RowBuffers(lib, lib.llama_n_ubatch(self._context))
        self.facts = Ready(
            model=weights.text("general.name") or Path(load.model_path).stem,
            device=weights.device.name,
            resident=True,
            vram_bytes=weights.device.used_bytes(),
            quant_kind=weights.quant_kind,
            tokenizer_kind=weights.text("tokenizer.ggml.model") or "unknown",
            vocab_size=lib.llama_vocab_n_tokens(self._vocab),
            cells=lib.llama_n_ctx(self._context),
            cells_per_job=min(lib.llama_n_ctx_seq(self._context), lib.llama_model_n_ctx_train(self._model)),
            sequences=load.parallel,
            exact=False,
            load_ms=(time.monotonic() - started) * 1000,
            tool_formats=self._prompts.tool_formats,
            bos=self._tokenizer.bos,
            eos=self._tokenizer.eos,
        )
        self.memory = self._read_memory_kind(load.model_path)
        plain = self.memory.kind == "attention" and self.generates and self.abortable and not load.exact
        same = weights.same_positions(self.facts.cells, min(load.side_cells, self.facts.cells))
        self.may_have_side_pool = plain and same and load.side_cells > 0 and load.parallel > 1
        progress(100)

    def _read_vocabulary(self) -> None:
        """All that turns text into tokens and back; starts the chat template's process."""
        self._tokenizer = Tokenizer(lib, self._vocab)
        # Some of llama.cpp's tokenizers crash the process if the vocabulary lacks a token: now, not at a prompt.
        self._tokenizer.encode("a \u00e9\U0001f98a", parse_special=True, add_special=True)
        vocabulary = range(lib.llama_vocab_n_tokens(self._vocab))
        self._ends = frozenset(token for token in vocabulary if lib.llama_vocab_is_eog(self._vocab, token))
        self.grammars = Grammars(self._tokenizer.vocabulary)
        template = lib.llama_model_chat_template(self._model, None)
        written = template.decode("utf-8", "replace") if template else None
        self._prompts = PromptEncoder(self._tokenizer, written)

    @property
    def abortable(self) -> bool:
        """ggml's CPU backend calls the abort callback before every graph node; its GPU backends do not."""
        return self.facts.device == "cpu"

    @property
    def generates(self) -> bool:
        """True: every model with a memory of earlier tokens generates text."""
        return True

    @property
    def pooling(self) -> Pooling:
        """From the option or else the file. Pooling is done here, so a prompt may be computed in several steps."""
        return self._weights.pooling

    @property
    def embeds_behind_prefix(self) -> bool:
        """Whether the embedding is that of the last row alone."""
        return self.pooling == "last"

    @property
    def layers(self) -> int:
        """As reported by llama.cpp."""
        return int(lib.llama_model_n_layer(self._model))

    @property
    def separate_streams(self) -> bool:
        """True with `--exact`. llama.cpp then computes all streams from the lowest to the highest id of a step."""
        return self._load.exact

    @property
    def dense_ids(self) -> bool:
        """Whether a gap between ids costs time: it does with separate streams (an unused stream is computed) and with
        recurrent states (one more micro-batch)."""
        return self._load.exact or self.memory.kind == "recurrent"

    # Text.

    def encode(self, prompt: str, template: Template, in_hand: CurrentPrompt | None = None) -> list[int]:
        """Token ids of a prompt."""
        return self._prompts.encode(prompt, template, self.facts.cells_per_job, in_hand)

    def count_tokens(self, text: str) -> int:
        """Tokens of a plain text."""
        return len(self._tokenizer.encode(text, parse_special=False, add_special=False))

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text."""
        return self._tokenizer.piece(token)

    def name(self, token: int) -> bytes:
        """A token's piece, or the name of a control token."""
        return self._tokenizer.piece(token) or self._tokenizer.text(token)

    def ends_generation(self, token: int) -> bool:
        """Whether the token is an end-of-generation token."""
        return token in self._ends

    # Computing.

    def decode(self, batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        """Compute at most 512 rows, in one micro-batch. With separate streams, llama.cpp makes a micro-batch for each
        number of rows per sequence, because all sequences of a micro-batch have equally many."""
        lib.llama_set_abort_callback(self._context, self._abort, self._watched[abort_mode])
        lib.llama_set_embeddings(self._context, batch.embeds)
        code = lib.llama_decode(self._context, self._rows.fill(batch))
        return OUTCOMES.get(code, Outcome.FAILED)

    def logits(self, row: int) -> bytes:
        """The logits of a row, as 32-bit floats over the vocabulary."""
        return ctypes.string_at(lib.llama_get_logits_ith(self._context, row), self.facts.vocab_size * 4)

    def embedding(self, row: int) -> Vector:
        """The output of the last layer, after the model's final normalization."""
        found = lib.llama_get_embeddings_ith(self._context, row)
        return np.ctypeslib.as_array(found, shape=(self.dimensions,)).copy()

    def sampler(self, sampling: SamplingParams, history: list[int]) -> Sampler:
        """A chain of llama.cpp's samplers."""
        return LlamaSampler(lib, self._context, self.facts.vocab_size, sampling, history, ends=self._ends)

    @contextmanager
    def inspection(self, sequences: int, cells: int, rows: int) -> Iterator[GraphInspection]:
        """A second, small context over the same weights."""
        recorder = Recorder(lib)
        params = self._context_params(self._load)
        params.n_seq_max, params.n_ctx = sequences, sequences * cells
        params.n_batch = params.n_ubatch = rows
        params.cb_eval = recorder.callback
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise ModelLoadError(
                f"{self._load.model_path}: no room for the self-check of --exact: {self._backend_log.last()}"
            )
        try:
            yield GraphInspection(lib, context, rows, self.facts.vocab_size, recorder)
        finally:
            lib.llama_free(context)

    # Memory.

    def trim(self, sequence: int, length: int) -> bool:
        """Remove the tokens after the first `length`. A recurrent state cannot be shortened, only removed."""
        if (side := self._aside(sequence)) is None:
            return self._pool.trim(sequence, length)
        trimmed = side.trim(sequence, length)
        if side.cells(sequence) == 0:
            side.release(sequence)
        return trimmed

    def clear(self) -> None:
        """Reset the cells, and the search heads, which may be wrong after a decode that found no room."""
        self._pool.clear()

    def move(self, source: int, target: int) -> bool:
        """Move a sequence to a free id. Separate streams are copied through a buffer, because `llama_memory_seq_cp`
        defers that copy to the next decode; until then the target would contain another sequence's memory."""
        copied = True
        if not self.separate_streams:
            self._pool.copy(source, target)
        elif self.cells(source) > 0:
            state = memoryview(bytearray(self.state_bytes(source)))
            copied = self.write_state(source, state) == len(state) and self.read_state(target, state)
        self.trim(source if copied else target, 0)
        return copied

    def copy(self, source: int, target: int, length: int) -> None:
        """Share the first cells of a sequence. Only llama.cpp's list of each cell's owners changes."""
        self._pool.copy(source, target, length)

    def cells(self, sequence: int) -> int:
        """By llama.cpp's own count."""
        return (self._aside(sequence) or self._pool).cells(sequence)

    def save(self, sequence: int, into: bytearray | None = None) -> bytearray:
        """Copy a sequence's recurrent states and the cells of its sliding windows."""
        size = self._pool.state_bytes(sequence, PARTIAL)
        buffer = into if into is not None and len(into) == size else bytearray(size)
        self._pool.write_state(sequence, memoryview(buffer), PARTIAL)
        return buffer

    def restore(self, sequence: int, saved: bytearray) -> bool:
        """Write the copy that `save` made into a sequence."""
        return self._pool.read_state(sequence, memoryview(saved), PARTIAL)

    def state_bytes(self, sequence: int) -> int:
        """As reported by llama.cpp."""
        side = self._aside(sequence)
        return (side.pool if side else self._pool).state_bytes(sequence)

    def write_state(self, sequence: int, into: memoryview) -> int:
        """Copy a sequence's cells and states into a buffer."""
        side = self._aside(sequence)
        return (side.pool if side else self._pool).write_state(sequence, into)

    def read_state(self, sequence: int, state: memoryview) -> bool:
        """Load a sequence from a buffer into free cells."""
        return self._pool.read_state(sequence, state)

    # Beside the pool.

    def side_pool(self) -> LlamaSidePool | None:
        """A second context for plain attention on a CPU. GPU steps cannot be paused, but are short; with `--exact`
        results must not depend on where a prompt is computed. The first call makes it, in a thread: its cells are
        zeroed, which takes some 0.1 s for each 100 MiB."""
        if self._side is None and self.may_have_side_pool and self._making_side is None:
            params = self._context_params(self._load)
            params.n_ctx = min(self._load.side_cells, params.n_ctx)
            making = partial(LlamaSidePool, lib, self._model, params, self._interrupt)
            executor = ThreadPoolExecutor(1, "side context")
            self._making_side = executor.submit(making)
            executor.shutdown(wait=False)
        if self._side is None and self._making_side is not None and self._making_side.done():
            self.may_have_side_pool = self._making_side.exception() is None
            self._side = self._making_side.result() if self.may_have_side_pool else None
        return self._side

    def is_aside(self, sequence: int) -> bool:
        """Whether the sequence is in the side pool."""
        return self._aside(sequence) is not None

    def is_computing(self, sequence: int) -> bool:
        """As the side pool says."""
        return self._side is not None and sequence in self._side.in_progress

    def move_aside(self, sequence: int) -> bool:
        """Copies the cells, if there are any."""
        if self._side is None or not moved(sequence, self._pool, self._side.pool, self._side.buffer):
            return False
        self._side.take(sequence)
        return True

    def move_back(self, sequence: int) -> bool:
        """Copies the cells."""
        if self._side is None or not moved(sequence, self._side.pool, self._pool, self._side.buffer):
            return False
        self._side.release(sequence)
        return True

    def _aside(self, sequence: int) -> LlamaSidePool | None:
        return self._side if self._side is not None and sequence in self._side.sequences else None

    def _read_memory_kind(self, path: str) -> Memory:
        """The kind as reported by llama.cpp. Whether the memory trims is tested, because some caches refuse
        silently."""
        window = int(lib.llama_model_n_swa(self._model))
        kind: MemoryKind = "sliding window" if window > 0 else "attention"
        if lib.llama_model_is_recurrent(self._model):
            kind = "recurrent"
        elif lib.llama_model_is_hybrid(self._model):
            kind = "hybrid"
        tried = self.decode(Batch([0, 0], [0, 1], [0, 0], [False, True]), abort_mode=AbortMode.NONE)
        if tried is Outcome.FAILED:
            raise ModelLoadError(
                f"model file {path}: llama.cpp cannot compute it: {self._backend_log.last()}"
            )
        trims = self.trim(0, 1) and self.cells(0) == 1
        self.trim(0, 0)
        return Memory(kind, trims, window or None)

    # Loading.

    def _open_memory(self) -> Any:
        """llama.cpp's memory of earlier tokens."""
        memory = lib.llama_get_memory(self._context)
        require_memory(memory, self._load.model_path, self._weights.architecture)
        return memory

    def _sequence_ids(self, load: Load) -> int:
        """Ids for the runs, and for warm prefixes where these are cheap: separate streams divide the cells among the
        ids, and each id of a recurrent model costs a state."""
        states = lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
        warm = WARM_IDS if load.prefix_cache and not load.exact and not states else 0
        return min(load.parallel + warm, int(lib.llama_max_parallel_sequences()))

    def _make_context(self, load: Load) -> Any:
        context = lib.llama_init_from_model(self._model, self._context_params(load))
        if not context:
            if load.exact and not self._backend_log.about_memory():
                mla = self._weights.text(f"{self._weights.architecture}.attention.kv_lora_rank")
                reason = "its attention is MLA, which keeps keys and values as one" if mla else ""
                raise ModelLoadError(
                    f"{load.model_path}: --exact refused: {reason or self._backend_log.last()}"
                )
            code = "INSUFFICIENT_VRAM" if load.gpu_device is not None else "MODEL_LOAD_FAILED"
            raise ModelLoadError(
                f"{load.model_path}: no room for {load.context_length} KV cells: {self._backend_log.last()}",
                code,
            )
        return context

    def _context_params(self, load: Load) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = load.context_length
        params.n_batch = params.n_ubatch = MAX_ROWS
        params.n_seq_max = self.sequence_ids
        params.n_threads = params.n_threads_batch = load.threads
        params.offload_kqv = load.gpu_device is not None
        params.op_offload = load.gpu_device is not None
        params.no_perf = True
        params.kv_unified = not load.exact
        params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        if load.exact:
            # With keys and values of different types, ggml's CPU attention avoids its split and tiled paths, whose
            # results depend on how rows are batched. With separate streams, the order of summation for a sequence
            # does not depend on other sequences.
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
            params.type_k, params.type_v = _BF16, _F16
        return params
