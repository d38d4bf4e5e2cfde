"""The parts in which a step is computed, and their results.

Without `--exact`, a step is one part: one decode of all its rows. With separate streams, a step has one part for each
range of consecutive sequence ids, because of a bug in llama.cpp (found in the version of llama-cpp-python 0.3.36).
llama.cpp splits such a batch into micro-batches at every gap between ids. `llama_kv_cache::prepare` finds room for the
micro-batches and then restores each stream's search head from the wrong index: `v_heads_old[s]` instead of
`v_heads_old[sinfo.strm[s]]`. Computing a micro-batch corrects the heads of its own streams. So the bug has an effect
only when an abort skips later micro-batches: the rows of their streams are then stored out of order, and attention sums
them in another order. The first micro-batch of a range contains every sequence of the range, so after an abort within
one range all heads are right. `tests/real/test_search_heads.py` fails once llama.cpp uses the right index; then one
part is enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from worker_orcd.engine.grammars.masks import MaskLate
from worker_orcd.engine.ledger import Ledger
from worker_orcd.engine.model import Batch, Model, Outcome
from worker_orcd.engine.planner import Plan, Share
from worker_orcd.engine.sequence import Sequence
from worker_orcd.protocol.messages import EndOfRun, Progress, PromptLogprobs, TokenOut


@dataclass(frozen=True, slots=True)
class Part:
    """The shares that one decode computes, as rows sorted by sequence id.

    `last_rows`: by run, the last row of each run whose tokens are all in cells afterwards. Its next token is drawn from
    this row.
    """

    shares: tuple[Share, ...]
    batch: Batch
    last_rows: dict[int, int]


@dataclass(slots=True)
class StepResult:
    """The results of a step: of all its parts, or of the parts before the first one that was aborted or failed.

    Attributes:
        outcome: `DONE` if all parts are done; otherwise the outcome of the first other part.
        undone: runs of the part that was aborted or failed.
        skipped: runs of the parts after it, which were not computed.
        prompt_computed: number of prompt tokens computed.
        ends: ends of runs that reached a natural end; these runs are not freed yet.
        late: runs without a token, because their masks were not computed in time; they have to begin again.
    """

    outcome: Outcome = Outcome.DONE
    undone: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    tokens: list[TokenOut] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    prompt_computed: int = 0
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    ends: list[EndOfRun] = field(default_factory=list)
    late: list[int] = field(default_factory=list)

    def add(
        self, part: Part, sequences: Mapping[int, Sequence], ledger: Ledger, model: Model, now: float
    ) -> None:
        """Record a part that was computed, and draw the next tokens of its runs."""
        row = 0
        for share in part.shares:
            sequence = sequences[share.key]
            before = sequence.prompt_processed
            if sequence.run.request.prompt_logprobs is not None:
                self.prompt_logprobs += sequence.score(row, share.rows, model)
            sequence.pool(row, share.rows, model)
            row += share.rows
            ledger.computed(sequence.slot, share.rows)
            if (processed := sequence.prompt_processed) > before:
                self.prompt_computed += processed - before
                self.progress.append(Progress(share.key, processed))
            if share.key in part.last_rows:
                self._draw(sequence, part.last_rows[share.key], model, now)

    def _draw(self, sequence: Sequence, row: int, model: Model, now: float) -> None:
        try:
            new, end = sequence.draw(row, model, now)
        except MaskLate:
            self.late.append(sequence.run.number)
            return
        self.tokens += new
        if end is not None:
            self.ends.append(end)


def parts_of(plan: Plan, sequences: Mapping[int, Sequence], *, separate_streams: bool) -> list[Part]:
    """Split a plan into parts.

    Args:
        plan: the step's plan.
        sequences: the runs by their number.
        separate_streams: whether each sequence has its own stream of cells.
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
        begin = sequence.computed
        end = begin + share.rows
        batch.tokens += sequence.tokens[begin:end]
        batch.positions += range(begin, end)
        batch.sequences += [sequence.id] * share.rows
        batch.wanted += map(sequence.wants_logits, range(begin, end))
        if sequence.run.request.embed is not None:
            batch.embeds |= any(map(sequence.wants_embedding, range(begin, end)))
        if end == len(sequence.tokens):
            last_rows[share.key] = len(batch.wanted) - 1
            batch.wanted[-1] = True
    return Part(tuple(shares), batch, last_rows)
