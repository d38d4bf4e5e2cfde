"""llama.cpp behind the `Model` interface. Only this file and `encoder.py` use its bindings."""

import contextlib
import ctypes
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from worker_orcd.engine.bindings import bindings
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
    PromptRefused,
    Sampler,
)
from worker_orcd.engine.planner import MAX_ROWS
from worker_orcd.engine.pooling import Vector
from worker_orcd.engine.row_buffers import RowBuffers
from worker_orcd.engine.sampler import LlamaSampler
from worker_orcd.engine.templates.renderer import Renderer, RendererLost
from worker_orcd.engine.templates.template import Source, TemplateFault
from worker_orcd.engine.tokenizer import Tokenizer
from worker_orcd.engine.weights import Weights
from worker_orcd.protocol.interrupt import InterruptByte
from worker_orcd.protocol.messages import Load, Pooling, Ready, Template
from worker_orcd.sampling import SamplingParams
from worker_orcd.tool_calls.formats import ToolFormat, recognized
from worker_orcd.tool_calls.generic_prompt import PROBE, shows_tools, with_tools

lib = bindings()
WARM_IDS = 16
"""Sequence ids beyond those of the runs: so many prefixes can stay warm while all runs compute."""
_BF16, _F16 = 30, 1
_PARTIAL = 1
"""LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: of a sequence's memory, only what cannot be trimmed."""
_WHOLE = 0
"""No flag: all of a sequence's memory."""
OUTCOMES = {0: Outcome.DONE, 1: Outcome.NO_ROOM, 2: Outcome.ABORTED, -2: Outcome.NO_MEMORY}
"""What `llama_decode` returns; everything else is a failure."""

_strlen = ctypes.CDLL(None).strlen
_never = ctypes.create_string_buffer(2)
"""A byte that is never set: ggml checks it during a step that must not be aborted."""


class LlamaModel:
    """One model, one context, `parallel` sequences."""

    def __init__(
        self,
        load: Load,
        interrupt: InterruptByte,
        progress: Callable[[float], None],
        weights: Weights | None = None,
    ) -> None:
        """Load it.

        Args:
            load: which model and how.
            interrupt: ends a running step when set.
            progress: called with the percentage that is loaded, after each tensor.
            weights: those of the model, if they are loaded already.

        Raises:
            ModelLoadError: with the reason, as far as llama.cpp says it.
        """
        started = time.monotonic()
        self._interrupt, self._load = interrupt, load
        weights = weights or Weights(lib, load, progress)
        self._weights, self._backend_log, self._model = weights, weights.backend_log, weights.model
        require_decoder(lib, self._model, load.model_path, weights.architecture)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.sequence_ids = self._sequence_ids(load)
        self._context = self._make_context(load)
        self._memory = self._open_memory()
        self.dimensions = int(lib.llama_model_n_embd_out(self._model))
        self._watched = {
            AbortMode.NONE: ctypes.addressof(_never),
            AbortMode.OVERDUE: interrupt.overdue_address,
            AbortMode.ANY: interrupt.address,
        }
        # libc's strlen(p) is 0 or 1 when p points at the flag byte followed by a NUL: a native abort callback that
        # needs neither a compiler nor the GIL, asked about a thousand times a step.
        self._abort = ctypes.cast(_strlen, lib.ggml_abort_callback)
        self._rows = RowBuffers(lib, lib.llama_n_ubatch(self._context))
        self._tokenizer = Tokenizer(lib, self._vocab)
        # Some of llama.cpp's tokenizers end the process if the vocabulary lacks a token: rather now than at a prompt.
        self._tokenizer.encode("a \u00e9\U0001f98a", parse_special=True, add_special=True)
        vocabulary = range(lib.llama_vocab_n_tokens(self._vocab))
        self._ends = frozenset(token for token in vocabulary if lib.llama_vocab_is_eog(self._vocab, token))
        self.grammars = Grammars(self._tokenizer.vocabulary)
        self._renderer: Renderer | None = None
        self._template_takes_tools = False
        self._tool_formats: tuple[ToolFormat, ...] = ()
        self._template_fault: str | None = None
        self._compile_chat_template()
        self.facts = Ready(
            model=weights.text("general.name") or Path(load.model_path).stem,
            device=weights.device.name,
            resident=True,
            vram_bytes=weights.device.used_bytes(),
            quant_kind=weights.quant_kind,
            tokenizer_kind=weights.text("tokenizer.ggml.model") or "unknown",
            vocab_size=len(vocabulary),
            cells=lib.llama_n_ctx(self._context),
            cells_per_job=min(lib.llama_n_ctx_seq(self._context), lib.llama_model_n_ctx_train(self._model)),
            sequences=load.parallel,
            exact=False,
            load_ms=(time.monotonic() - started) * 1000,
            tool_formats=self._tool_formats,
            bos=self._tokenizer.bos,
            eos=self._tokenizer.eos,
        )
        self.memory = self._read_memory_kind(load.model_path)
        progress(100)

    @property
    def abortable(self) -> bool:
        """ggml's CPU backend asks before every graph node; its GPU backends do not."""
        return self.facts.device == "cpu"

    @property
    def generates(self) -> bool:
        """All that have memory of earlier tokens do."""
        return True

    @property
    def pooling(self) -> Pooling:
        """As the option says, or the file. Tokens are pooled here, so a prompt may be computed in several steps."""
        return self._weights.pooling

    @property
    def embeds_behind_prefix(self) -> bool:
        """Where the last row has it all."""
        return self.pooling == "last"

    @property
    def layers(self) -> int:
        """As llama.cpp reports it."""
        return int(lib.llama_model_n_layer(self._model))

    @property
    def separate_streams(self) -> bool:
        """With `--exact`. llama.cpp computes streams from the lowest to the highest id of a step."""
        return self._load.exact

    @property
    def dense_ids(self) -> bool:
        """A gap costs separate streams a stream that is computed in vain, recurrent states a micro-batch more."""
        return self._load.exact or self.memory.kind == "recurrent"

    # Text.

    def encode(self, prompt: str, template: Template, in_hand: CurrentPrompt | None = None) -> list[int]:
        """Token ids of a prompt: raw text, or a conversation in the model's chat template."""
        if template == "plain":
            return self._tokenizer.encode(prompt, parse_special=True, add_special=False)
        if template == "infill":
            return self._tokenizer.encode_infill(prompt, self.facts.cells_per_job)
        if template != "none" and self._template_fault is not None:
            raise PromptRefused(self._template_fault, "template")
        if template == "messages" and self._renderer is None:
            raise PromptRefused("the model has no chat template")
        if template == "none" or self._renderer is None:
            return self._tokenizer.encode(prompt, parse_special=True, add_special=True)
        variables = self._variables(prompt, template) | {"add_generation_prompt": True}
        try:
            pieces = self._renderer.render(variables, in_hand)
        except TemplateFault as fault:
            raise PromptRefused(str(fault)) from fault
        return self._tokenizer.encode_pieces(pieces)

    def _variables(self, prompt: str, template: Template) -> dict[str, Any]:
        """A conversation as its chat template takes it."""
        if template != "messages":
            return {"messages": [{"role": "user", "content": prompt}]}
        return with_tools(json.loads(prompt), takes_tools=self._template_takes_tools)

    def count_tokens(self, text: str) -> int:
        """Tokens of a plain text."""
        return len(self._tokenizer.encode(text, parse_special=False, add_special=False))

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the text."""
        return self._tokenizer.piece(token)

    def name(self, token: int) -> bytes:
        """Its piece, or a control token's name."""
        return self._tokenizer.piece(token) or self._tokenizer.text(token)

    def ends_generation(self, token: int) -> bool:
        """Whether it is an end-of-generation token."""
        return token in self._ends

    def _compile_chat_template(self) -> None:
        """A model without a template takes prompts as they are, one with a broken template only with `none`."""
        source = lib.llama_model_chat_template(self._model, None)
        if not source:
            return
        written = source.decode("utf-8", "replace")
        self._tool_formats = recognized(written)
        tokenizer = self._tokenizer
        try:
            self._renderer = Renderer(
                Source(
                    written,
                    bos=tokenizer.bos,
                    eos=tokenizer.eos,
                    adds_bos=tokenizer.adds_bos,
                    adds_eos=tokenizer.adds_eos,
                    special=tokenizer.special_tokens(),
                )
            )
        except (TemplateFault, RendererLost) as fault:
            self._template_fault = f"{fault}; send the prompt with template 'none'"
            return
        with contextlib.suppress(TemplateFault, RendererLost):
            self._template_takes_tools = shows_tools(self._renderer.render(PROBE))

    # Computing.

    def decode(self, batch: Batch, *, abort_mode: AbortMode) -> Outcome:
        """Compute at most 512 rows. They are one micro-batch, but with separate streams one for each number of rows:
        llama.cpp gives every sequence of a micro-batch equally many."""
        lib.llama_set_abort_callback(self._context, self._abort, self._watched[abort_mode])
        lib.llama_set_embeddings(self._context, batch.embeds)
        code = lib.llama_decode(self._context, self._rows.fill(batch))
        return OUTCOMES.get(code, Outcome.FAILED)

    def logits(self, row: int) -> bytes:
        """The raw scores of a row, 32-bit floats over the vocabulary."""
        return ctypes.string_at(lib.llama_get_logits_ith(self._context, row), self.facts.vocab_size * 4)

    def embedding(self, row: int) -> Vector:
        """The output of the last layer, normalized as the model does before its head."""
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
        """Forget what lies behind the first `length` tokens. A recurrent state cannot be cut back, only dropped."""
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def clear(self) -> None:
        """Reset the cells, and the search heads that a decode which found no room may have left wrong."""
        lib.llama_memory_clear(self._memory, False)

    def move(self, source: int, target: int) -> bool:
        """Between separate streams by way of a buffer: there `llama_memory_seq_cp` only notes a copy, which the next
        decode carries out. Until then the target has another sequence's memory."""
        moved = True
        if not self.separate_streams:
            lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        elif self.cells(source) > 0:
            state = memoryview(bytearray(self.state_bytes(source)))
            moved = self.write_state(source, state) == len(state) and self.read_state(target, state)
        self.trim(source if moved else target, 0)
        return moved

    def copy(self, source: int, target: int, length: int) -> None:
        """Only llama.cpp's list of cell owners changes."""
        lib.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def cells(self, sequence: int) -> int:
        """Tokens up to the highest position that llama.cpp knows of the sequence.

        The lowest position says nothing: a recurrent state has its last one only, and behind a sliding window
        llama.cpp gives cells away that the sequence does not look at any more.
        """
        return int(lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def save(self, sequence: int, into: bytearray | None = None) -> bytearray:
        """Copy its recurrent states, and the cells of its sliding windows."""
        size = self.state_bytes(sequence, _PARTIAL)
        buffer = into if into is not None and len(into) == size else bytearray(size)
        self.write_state(sequence, memoryview(buffer), _PARTIAL)
        return buffer

    def restore(self, sequence: int, saved: bytearray) -> bool:
        """Write them into the sequence."""
        return self.read_state(sequence, memoryview(saved), _PARTIAL)

    def state_bytes(self, sequence: int, flags: int = _WHOLE) -> int:
        """As llama.cpp reports it."""
        return int(lib.llama_state_seq_get_size_ext(self._context, sequence, flags))

    def write_state(self, sequence: int, into: memoryview, flags: int = _WHOLE) -> int:
        """Copy its cells and states."""
        native = (ctypes.c_uint8 * len(into)).from_buffer(into)
        return int(lib.llama_state_seq_get_data_ext(self._context, native, len(into), sequence, flags))

    def read_state(self, sequence: int, state: memoryview, flags: int = _WHOLE) -> bool:
        """Put them into free cells. llama.cpp returns the bytes it took, 0 for a failure."""
        native = (ctypes.c_uint8 * len(state)).from_buffer(state)
        return bool(
            lib.llama_state_seq_set_data_ext(self._context, native, len(state), sequence, flags) == len(state)
        )

    def _read_memory_kind(self, path: str) -> Memory:
        """Its kind as llama.cpp reports it; whether it trims by trying, since some caches refuse to without saying
        so."""
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
        """What llama.cpp remembers of earlier tokens."""
        memory = lib.llama_get_memory(self._context)
        require_memory(memory, self._load.model_path, self._weights.architecture)
        return memory

    def _sequence_ids(self, load: Load) -> int:
        """Separate streams divide the cells among the ids, and each id of a recurrent model costs a state."""
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
            # Keys and values of different types keep ggml's CPU attention off its split and tiled paths, whose
            # results depend on how rows are batched; separate streams of cells keep neighbours out of each
            # other's order of summation.
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
            params.type_k, params.type_v = _BF16, _F16
        return params
