"""The parts in which a step is computed, and their results. Pure.

Without `--exact` a step is one part: one decode of all its rows. With separate streams it is one part for each stretch
of consecutive sequence ids, because of a fault in llama.cpp (seen in the version that llama-cpp-python 0.3.36 ships).
llama.cpp splits such a batch into micro-batches at every gap in its ids. `llama_kv_cache::prepare` tries where the
micro-batches find room and then restores each stream's search head by the wrong index: `v_heads_old[s]` instead of
`v_heads_old[sinfo.strm[s]]`. Each micro-batch that is computed sets the heads of its own streams right again, so the
fault only shows when an abort keeps later micro-batches from being computed: their rows then lie out of order in the
cells, and attention sums them in another order. The first micro-batch of a stretch holds every sequence of the stretch,
so after an abort of one stretch all heads are right. When llama.cpp restores the heads by the right index, one part
will do; `tests/real/test_search_heads.py` tells when.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from worker_orcd.engine.model import Batch, Outcome
from worker_orcd.engine.planner import Plan, Share
from worker_orcd.engine.sequence import Sequence
from worker_orcd.protocol.messages import EndOfRun, Progress, PromptLogprobs, TokenOut


@dataclass(frozen=True, slots=True)
class Part:
    """What one decode computes: these shares, as rows sorted by sequence id.

    `last_rows` holds the last row of each run whose tokens are all in cells afterwards: its next token is drawn there.
    """

    shares: tuple[Share, ...]
    batch: Batch
    last_rows: dict[int, int]


@dataclass(slots=True)
class StepResult:
    """The results of a step: of all its parts, or of those before the first that was not done.

    Attributes:
        outcome: `DONE` if all parts are done; otherwise how the first that was not ended.
        undone: runs of the part that was not done.
        skipped: runs of the parts behind it, which were not computed.
        prompt_computed: prompt tokens that were computed.
        ends: of runs that ended by themselves; they are not freed yet.
    """

    outcome: Outcome = Outcome.DONE
    undone: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    tokens: list[TokenOut] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    prompt_computed: int = 0
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    ends: list[EndOfRun] = field(default_factory=list)


def parts_of(plan: Plan, sequences: Mapping[int, Sequence], *, separate_streams: bool) -> list[Part]:
    """Split a plan into the parts in which it is computed.

    Args:
        plan: the step.
        sequences: the runs by their number.
        separate_streams: whether each sequence has a stream of cells of its own.
    """
    stretches: list[list[Share]] = []
    last_id = -1
    for share in sorted(plan.shares, key=lambda share: sequences[share.key].id):
        id_ = sequences[share.key].id
        if not stretches or (separate_streams and id_ != last_id + 1):
            stretches.append([])
        stretches[-1].append(share)
        last_id = id_
    return [_part(stretch, sequences) for stretch in stretches]


def runs_of(parts: list[Part]) -> tuple[int, ...]:
    """The runs that have rows in these parts."""
    return tuple(share.key for share in chain.from_iterable(part.shares for part in parts))


def _part(shares: list[Share], sequences: Mapping[int, Sequence]) -> Part:
    batch = Batch([], [], [], [])
    last_rows: dict[int, int] = {}
    for share in shares:
        sequence = sequences[share.key]
        end = sequence.computed + share.rows
        batch.tokens += sequence.tokens[sequence.computed : end]
        batch.positions += range(sequence.computed, end)
        batch.sequences += [sequence.id] * share.rows
        batch.wanted += map(sequence.wants_logits, range(sequence.computed, end))
        if sequence.run.embed is not None:
            batch.embeds |= any(map(sequence.wants_embedding, range(sequence.computed, end)))
        if end == len(sequence.tokens):
            last_rows[share.key] = len(batch.wanted) - 1
            batch.wanted[-1] = True
    return Part(tuple(shares), batch, last_rows)
