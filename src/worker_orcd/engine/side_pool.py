"""A second pool of KV cells, whose steps can be paused: prompts are computed there beside streams.

llama.cpp computes one step of a context after another. In one context, streams would therefore wait for each step of a
long prompt, and steps that are short enough for them cost several times as much per row (see `TILE_ROWS`). So a prompt
is computed in a second context over the same weights. Before and after an operation of its graph, ggml asks whether to
go on, and the answer may take as long as a few steps of the streams.

The two contexts never compute at the same time: the thread that computes here and the loop hand over to each other.
"""

import ctypes
import mmap
import sys
import threading
import time
from typing import Any

from worker_orcd.engine.cell_pool import CellPool
from worker_orcd.engine.model import Batch, Outcome
from worker_orcd.engine.row_buffers import OUTCOMES, RowBuffers
from worker_orcd.protocol.interrupt import InterruptByte

_PAUSE_MS = 2.0
"""Predicted time between two operations after which a step may pause. Each costs some ten microseconds…"""
_FIRST_OPERATIONS = 4
"""… so how many lie between two is calculated, from the second step on."""

_WRITTEN_BYTES, _REST_SEC = 1 << 20, 0.004
"""How much of the buffer is written at once, and how long the cores are left to the streams after that."""
_SWITCH_SEC = 0.0005
"""How soon a thread gives way that runs Python code, since ggml's callback waits for it."""

_strlen = ctypes.CDLL(None).strlen
_set_byte = ctypes.create_string_buffer(b"\1")
"""A byte that is always set: ggml then aborts the step."""


class LlamaSidePool:
    """A second context. One step at a time is *in progress*: computing or paused."""

    def __init__(self, lib: Any, model: Any, params: Any, interrupt: InterruptByte) -> None:
        """Create the context.

        Args:
            lib: llama.cpp's bindings.
            model: the weights.
            params: the parameters of the other context, with this one's number of cells.
            interrupt: pauses a step when set; aborts it if a stop is overdue.

        Raises:
            MemoryError: no room for the cells.
        """
        self._lib = lib
        self._interrupt = interrupt
        self._asked = lib.ggml_backend_sched_eval_callback(self._evaluated)
        params.cb_eval = self._asked
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise MemoryError(f"no room for {params.n_ctx} KV cells beside the pool")
        self._abort = ctypes.cast(_strlen, lib.ggml_abort_callback)
        self._rows = RowBuffers(lib, lib.llama_n_ubatch(self._context))
        self.pool = CellPool(lib, self._context, lib.llama_get_memory(self._context))
        """The cells. Not to be used for a sequence with rows in progress."""
        self._held: frozenset[int] = frozenset()
        self._batch: Batch | None = None
        self._lengths: dict[int, int] = {}
        """Of the step in progress: its sequences, and their numbers of tokens before it."""
        self._until = 0.0
        self._operations, self._between, self._counted = 0, _FIRST_OPERATIONS, 0
        self._pauses = False
        """Whether operations may pause. Not before the thread has started, nor while a step is aborted."""
        self._outcome: Outcome | None = None
        try:
            self.cell_bytes, self._fixed_bytes = self._state_size()
            largest = self._fixed_bytes + self.cell_bytes * int(lib.llama_n_ctx(self._context))
            self._memory = mmap.mmap(-1, largest, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, MemoryError):
            lib.llama_free(self._context)
            raise
        self.buffer = memoryview(self._memory)
        """For moving a sequence. The kernel provides its memory as it is written, 1 ms for each MiB; so that streams
        need not wait for that, `prepare` has a thread write first."""
        self._written = 0
        self._writing: threading.Thread | None = None
        self._resume, self._yielded = threading.Lock(), threading.Lock()
        self._resume.acquire()
        self._yielded.acquire()
        sys.setswitchinterval(_SWITCH_SEC)
        threading.Thread(target=self._compute, name="side pool", daemon=True).start()

    def _state_size(self) -> tuple[int, int]:
        """Bytes of a sequence's state: for each cell, and in addition.

        Raises:
            MemoryError: two rows cannot be computed.
        """
        if self._lib.llama_decode(self._context, self._rows.fill(Batch([0, 0], [0, 1], [0, 0], [False] * 2))):
            raise MemoryError("no room for a step beside the pool")
        two, _ = self.pool.state_bytes(0), self.pool.trim(0, 1)
        one, _ = self.pool.state_bytes(0), self.pool.trim(0, 0)
        return two - one, max(0, 2 * one - two)

    # Sequences.

    @property
    def room(self) -> int:
        """Number of free cells."""
        return int(self._lib.llama_n_ctx(self._context)) - sum(map(self.cells, self._held))

    @property
    def sequences(self) -> frozenset[int]:
        """The sequences that are here."""
        return self._held

    def prepare(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens can be moved at once. If not, a thread now sees to that."""
        wanted = self._fixed_bytes + tokens * self.cell_bytes
        if wanted <= self._written:
            return True
        if self._writing is None or not self._writing.is_alive():
            self._writing = threading.Thread(target=self._write, args=(wanted,), name="buffer", daemon=True)
            self._writing.start()
        return False

    def _write(self, wanted: int) -> None:
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for begin in range(self._written, wanted, _WRITTEN_BYTES):
            ctypes.memset(first + begin, 0, min(_WRITTEN_BYTES, wanted - begin))
            time.sleep(_REST_SEC)
        self._written = wanted

    def _give_back(self) -> None:
        self._memory.madvise(mmap.MADV_DONTNEED)

    def take(self, sequence: int) -> None:
        """Let a sequence be here, whose cells were moved to this pool, if it has any."""
        self._held |= {sequence}

    def release(self, sequence: int) -> None:
        """Let a sequence be elsewhere, whose cells were moved or removed. After the last one, the buffer's memory is
        returned."""
        self._held -= {sequence}
        if not self._held and self._written and (self._writing is None or not self._writing.is_alive()):
            self._written = 0
            self._writing = threading.Thread(target=self._give_back, name="buffer", daemon=True)
            self._writing.start()

    def cells(self, sequence: int) -> int:
        """Number of tokens of a sequence, without rows in progress."""
        return self._lengths[sequence] if sequence in self._lengths else self.pool.cells(sequence)

    def trim(self, sequence: int, length: int) -> bool:
        """Remove a sequence's tokens after its first `length`. Aborts the step in progress if it needs them."""
        if sequence in self._lengths:
            if length >= self._lengths[sequence]:
                return True
            self.abort()
        return self.pool.trim(sequence, length)

    # Steps.

    @property
    def in_progress(self) -> frozenset[int]:
        """The sequences with rows in the step in progress."""
        return frozenset(self._lengths)

    def begin(self, batch: Batch, predicted_ms: float) -> None:
        """Begin a step, which `proceed` computes.

        Raises:
            ValueError: a step is in progress.
        """
        if self._batch is not None:
            raise ValueError("a step is in progress")
        if self._counted:
            self._between = max(1, round(self._counted * _PAUSE_MS / max(predicted_ms, _PAUSE_MS)))
        self._batch, self._outcome, self._operations, self._pauses = batch, None, 0, True
        self._lengths = {sequence: self.pool.cells(sequence) for sequence in batch.sequences}
        watched = self._interrupt.overdue_address
        self._lib.llama_set_abort_callback(self._context, self._abort, watched)

    def proceed(self, until: float) -> Outcome | None:
        """Compute until this time, in seconds of the monotonic clock, or until the interrupt byte is set, but at least
        some operations. Returns the step's outcome if it has ended. Rows of a step that is not done are removed."""
        if self._batch is None:
            raise ValueError("no step is in progress")
        self._until = until
        self._resume.release()
        self._yielded.acquire()
        if self._outcome is None:
            return None
        lengths, self._lengths, self._batch = self._lengths, {}, None
        if self._outcome is Outcome.DONE and self._pauses:
            self._counted = self._operations
        else:
            for sequence, length in lengths.items():
                self.pool.trim(sequence, length)
        return self._outcome

    def abort(self) -> None:
        """End the step in progress, if there is one, and remove its rows."""
        if self._batch is not None:
            self._lib.llama_set_abort_callback(self._context, self._abort, ctypes.addressof(_set_byte))
            # It may be done instead, if only its last operations were left. Its rows are removed in any case.
            self._pauses = False
            self.proceed(time.monotonic())

    def _compute(self) -> None:
        """The thread: compute one step after another, each when `proceed` resumes."""
        while True:
            self._resume.acquire()
            if self._batch is not None:
                code = self._lib.llama_decode(self._context, self._rows.fill(self._batch))
                self._outcome = OUTCOMES.get(code, Outcome.FAILED)
            self._yielded.release()

    def _evaluated(self, _tensor: int, ask: bool, _user_data: object) -> bool:
        """ggml's callback. With `ask`: whether the step may pause after this operation. Without: it pauses here, if it
        is time."""
        if ask:
            self._operations += 1
            return self._pauses and self._operations % self._between == 0
        if not self._pauses:
            return True
        if time.monotonic() >= self._until or self._interrupt.is_set():
            self._yielded.release()
            self._resume.acquire()
        return True
