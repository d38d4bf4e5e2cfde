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
        rounding: logits that are farther from those of the run alone come from a wrong state, in the measure of
            `histories.distance` and with F32 weights. Five to twenty times what is seen without aborts.
        exact: whether streams are byte-identical with `--exact` when its weights are Q8_0. MLA has no cache of the
            types that `--exact` needs; RWKV and mixtures of experts compute with some F32 weights, whose results
            depend on the number of rows.
        metadata: keys to replace. Windows are short, so that a few tokens leave them.
    """

    name: str
    memory: MemoryKind
    rounding: float
    exact: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("llama", "attention", 2e-3),
    Case("llama-moe", "attention", 2e-3, exact=False),
    # Without experts: MLA's rounding is coarse enough to choose another expert now and then, also without an abort.
    Case("deepseek2", "attention", 2e-2, exact=False, metadata={"deepseek2.leading_dense_block_count": 6}),
    Case("gemma3", "sliding window", 2e-2, metadata={"gemma3.attention.sliding_window": 32}),
    Case("gpt-oss", "sliding window", 2e-3, exact=False, metadata={"gpt-oss.attention.sliding_window": 32}),
    Case("mamba", "recurrent", 1e-6),
    Case("mamba2", "recurrent", 1e-5),
    Case("rwkv7", "recurrent", 1e-5, exact=False),
    Case("jamba", "hybrid", 1e-3, exact=False),
    Case("falcon-h1", "hybrid", 1e-3),
    Case("lfm2", "hybrid", 1e-5),
    Case("granitehybrid", "hybrid", 2e-3, exact=False),
    Case("qwen3next", "hybrid", 1e-4, exact=False),
)
