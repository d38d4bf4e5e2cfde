"""The models that stand for each kind of memory, tiny ones, and what is known of each."""

from dataclasses import dataclass, field
from typing import Any

from worker_orcd.engine.model import MemoryKind


@dataclass(frozen=True, slots=True)
class Case:
    """One model of `tests.tiny.architectures.MODELS`.

    Attributes:
        name: the model.
        memory: the kind of memory that it has.
        rounding: a limit that logits computed in other steps keep to, and that one wrong token exceeds, in the measure
            of `histories.distance` and with F32 weights (`test_rounding.py`).
        refused: what `--exact` says of the model when its weights are Q8_0; "" if it takes it.
        metadata: keys to replace. Windows are short, so that a few tokens leave them.
    """

    name: str
    memory: MemoryKind
    rounding: float
    refused: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


_ROUTER = "a mixture of experts whose router has F32 weights"
_RWKV = "F32 weights (blk.0.time_mix_"
_MLA = "its attention is MLA"


def _window(architecture: str) -> dict[str, Any]:
    return {f"{architecture}.attention.sliding_window": 32}


CASES = (
    Case("llama", "attention", 5e-4),
    Case("llama-moe", "attention", 5e-4, refused=_ROUTER),
    Case("qwen3moe", "attention", 1e-3, refused=_ROUTER),
    # Without experts: MLA's rounding is coarse enough to choose another expert now and then, also without an abort.
    Case("deepseek2", "attention", 1e-2, refused=_MLA, metadata={"deepseek2.leading_dense_block_count": 6}),
    Case("gemma2", "sliding window", 1e-2, metadata=_window("gemma2")),
    Case("gemma3", "sliding window", 1e-2, metadata=_window("gemma3")),
    Case(
        "gemma3n",
        "sliding window",
        2e-2,
        refused="F32 weights (altup_proj.weight)",
        metadata=_window("gemma3n"),
    ),
    Case("gpt-oss", "sliding window", 7e-4, refused=_ROUTER, metadata=_window("gpt-oss")),
    Case("cohere2", "sliding window", 1e-3, metadata=_window("cohere2")),
    Case("llama4", "sliding window", 2e-3, refused=_ROUTER),
    Case("exaone4", "sliding window", 1e-2, metadata=_window("exaone4")),
    Case("mamba", "recurrent", 1e-6, refused="F32 weights (blk.0.ssm_dt.weight)"),
    Case("mamba2", "recurrent", 1e-5),
    Case("rwkv6", "recurrent", 1e-3, refused=_RWKV),
    Case("rwkv7", "recurrent", 1e-3, refused=_RWKV),
    Case("jamba", "hybrid", 5e-4, refused="F32 weights (blk.0.ssm_dt.weight)"),
    Case("falcon-h1", "hybrid", 1e-3),
    Case("lfm2", "hybrid", 1e-5),
    Case("granitehybrid", "hybrid", 1e-3, refused=_ROUTER),
    Case("qwen3next", "hybrid", 1e-4, refused=_ROUTER),
    Case("lfm2moe", "hybrid", 1e-4, refused=_ROUTER),
    Case("nemotron_h", "hybrid", 1e-3),
    Case("qwen35", "hybrid", 5e-4),
    Case("qwen35moe", "hybrid", 5e-4, refused=_ROUTER),
    Case("kimi-linear", "hybrid", 1e-3, refused=_MLA, metadata={"kimi-linear.leading_dense_block_count": 6}),
)
