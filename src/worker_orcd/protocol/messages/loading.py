"""Messages about loading the model: `Load`, and its answers."""

from typing import Literal

from worker_orcd.protocol.messages.message import Message
from worker_orcd.tool_calls.formats import ToolFormat

Pooling = Literal["none", "mean", "cls", "last"]
"""How the embeddings of a prompt's tokens become the prompt's: the mean of all, the first or last one, or none at
all."""

StepCosts = tuple[tuple[int, float], ...]
"""Rows and milliseconds of the steps by which an engine learned, before its first job, what steps cost."""


class Load(Message, frozen=True):
    """The first message: load a model. Answered by `Loading`*, then `Ready` or `LoadFailed`.

    Attributes:
        model_path: a GGUF file.
        worker_id: the worker's id, a field of all log events.
        gpu_device: the GPU that holds the whole model; None: the CPU.
        parallel: sequences decoded together.
        context_length: KV cells for all sequences.
        exact: byte-identical streams whatever runs beside them.
        threads: compute threads.
        log_format: how the engine writes its log events, `json` or `pretty`.
        self_check: whether to check exactness before `Ready`. One check is enough for later engines on the same
            machine.
        prefix_cache: whether computed prefixes are kept for later runs.
        model_bytes: the size of the file, or of all parts of a split model.
        embeddings: whether an encoder, which generates no text, may be loaded.
        pooling: how a prompt's embedding is made; None: as in the model file.
        costs: what an earlier engine with the same settings measured; it is not measured again.
        side_cells: the most KV cells for prompts that are computed beside streams, in a pool of their own; 0: none.
    """

    model_path: str
    worker_id: str
    gpu_device: int | None
    parallel: int
    context_length: int
    exact: bool
    threads: int
    log_format: Literal["json", "pretty"]
    self_check: bool = True
    prefix_cache: bool = True
    model_bytes: int = 0
    embeddings: bool = False
    pooling: Pooling | None = None
    costs: StepCosts = ()
    side_cells: int = 0


Percent = Literal[0, 25, 50, 75, 100]


class Loading(Message, frozen=True):
    """Progress of loading, in percent."""

    percent: Percent


class Ready(Message, frozen=True):
    """The engine is ready.

    Attributes:
        model: the model's name in its file.
        device: `cpu`, or the GPU's name.
        resident: whether all weights are in the device's memory.
        vram_bytes: bytes of device memory in use, 0 on CPU.
        quant_kind: the file's quantization, for example `Q4_K_M`.
        tokenizer_kind: llama.cpp's name for the kind of tokenizer.
        vocab_size: number of tokens in the vocabulary.
        cells: total number of KV cells.
        cells_per_job: the most cells that one job may use.
        sequences: number of sequences that can be decoded together.
        exact: whether the self-check found that streams are byte-identical whatever runs beside them.
        load_ms: time from `Load` to `Ready`.
        next_ms: predicted duration of the first step of a long prompt.
        tool_formats: the formats of tool calls that the model's chat template contains.
        bos, eos: the texts of the tokens that begin and end a sequence, "" without such a token.
    """

    model: str
    device: str
    resident: bool
    vram_bytes: int
    quant_kind: str
    tokenizer_kind: str
    vocab_size: int
    cells: int
    cells_per_job: int
    sequences: int
    exact: bool
    load_ms: float
    next_ms: float = 0.0
    tool_formats: tuple[ToolFormat, ...] = ()
    bos: str = ""
    eos: str = ""


class Measured(Message, frozen=True):
    """What the engine knows of the cost of steps by its first job, which ends the measuring. Follows `Ready`.

    Attributes:
        costs: for its successors.
        next_ms: as in `Ready`.
    """

    costs: StepCosts
    next_ms: float


class LoadFailed(Message, frozen=True):
    """The model cannot be loaded, and the engine exits. `code` is an error code of the API."""

    code: str
    message: str
