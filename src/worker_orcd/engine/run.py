"""A run as the engine computes it."""

from typing import Self

import msgspec

from worker_orcd.protocol.messages import Begin, Constraint, Submit
from worker_orcd.sampling import SamplingParams
from worker_orcd.tool_calls.formats import Marks


class Run(msgspec.Struct, frozen=True):
    """What to generate; the fields are those of `Submit` and `Begin`, and the prompt is its token ids."""

    run: int
    job_id: str
    correlation_id: str
    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...]
    sampling: SamplingParams
    prompt_chars: int
    prompt_sha256: str
    owner: str = ""
    cache: str | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    priority: int = 0
    order: float = 0.0
    marks: Marks = "none"
    embed: int | None = None

    @classmethod
    def of(cls, submitted: Submit, prompt: tuple[int, ...], begin: Begin) -> Self:
        """An accepted run that is to begin."""
        return cls(
            run=submitted.run,
            job_id=submitted.job_id,
            correlation_id=submitted.correlation_id,
            prompt=prompt,
            generated=begin.generated,
            max_tokens=begin.max_tokens,
            stop=submitted.stop,
            sampling=submitted.sampling,
            prompt_chars=submitted.prompt_chars,
            prompt_sha256=submitted.prompt_sha256,
            owner=submitted.owner,
            cache=submitted.cache,
            prompt_logprobs=submitted.prompt_logprobs,
            constraint=submitted.constraint,
            priority=submitted.priority,
            order=submitted.order,
            marks=submitted.marks,
            embed=submitted.embed,
        )
