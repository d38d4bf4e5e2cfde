"""Loading the model: `Load`, and its answers."""

from typing import Literal

from worker_orcd.protocol.messages.message import Message
from worker_orcd.tool_calls.formats import ToolFormat

Pooling = Literal["none", "mean", "cls", "last"]
"""Which tokens' embeddings make a prompt's one: all of them, the first or the last one, or none."""


class Load(Message, frozen=True):
    """The first message: which model, and how. Answered by `Loading`*, then `Ready` or `LoadFailed`.

    Attributes:
        model_path: a GGUF file.
        worker_id: the worker's id, a field of all log events.
        gpu_device: the GPU that holds the whole model; None: the CPU.
        parallel: sequences decoded together.
        context_length: KV cells for all sequences.
        exact: byte-identical streams whatever runs beside them.
        threads: compute threads.
        log_format: how the engine writes its log events, `json` or `pretty`.
        self_check: whether to prove exactness before `Ready`. One proof holds for the successors on the same machine,
            too.
        prefix_cache: whether computed prefixes are kept for later runs.
        model_bytes: the size of the file, or of all parts of a split model.
        embeddings: whether an encoder may be loaded, which generates no text.
        pooling: which tokens make a prompt's embedding; None: as the model file says.
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


Percent = Literal[0, 25, 50, 75, 100]


class Loading(Message, frozen=True):
    """The model is loaded to so many percent."""

    percent: Percent


class Ready(Message, frozen=True):
    """The engine is ready.

    Attributes:
        model: the model's name in its file.
        device: `cpu`, or the GPU's name.
        resident: whether all weights are where they compute.
        vram_bytes: bytes of device memory in use, 0 on CPU.
        quant_kind: the file's quantization, for example `Q4_K_M`.
        tokenizer_kind: the kind of its tokenizer, in llama.cpp's word.
        vocab_size: tokens of the vocabulary.
        cells: KV cells in all.
        cells_per_job: the most cells that one job may use.
        sequences: sequences that can be decoded together.
        exact: whether streams are byte-identical whatever runs beside them, as the self-check found.
        load_ms: time from `Load` to `Ready`.
        next_ms: how long the first step of a long prompt is predicted to take.
        tool_formats: the formats of tools' calls that the model's chat template names.
        bos, eos: the texts of the tokens that begin and end a sequence, "" where there is none.
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


class LoadFailed(Message, frozen=True):
    """The model cannot be loaded; the engine exits. `code` is an error code of the contract."""

    code: str
    message: str
