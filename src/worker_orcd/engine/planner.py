"""Plans the rows of the next step by predicted time. Pure.

A *row* is one token of one sequence. Every decoding sequence gets one row; then prefill rows are added until the step's
predicted time reaches its limit. This rule bounds how long a stop waits on a backend that cannot abort a step (G1), and
how long a long prompt delays the streams beside it (G12).
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from enum import Enum

MIXED_MS = 25.0
"""A step with decode rows may last at least this long, if there is prefill to fill it."""
MIXED_RATIO = 2.2
"""… and otherwise this many times its decode part. G12 allows three times; predictions have errors."""
PREFILL_MS = 500.0
"""Limit of an abortable step with prefill only. A new job waits for the step's end, on average half of it."""
TILE_ROWS = 64
"""With this many rows, ggml's CPU attention takes its tiled path: after 1,000 cells a row then costs half as much,
after 7,000 a third. It computes whole tiles: 65 rows take as long as 128 (measured; docs/performance.md)."""
STRETCH = {1: 3.0, 2: 3.0, 4: 4.0}
"""A step with prefill only may take so many times its limit if that completes one or two tiles, or four that complete
the only prompt. A row costs twice as much in a smaller step as in one of one tile, 1.2 times as much in that one as in
one of two, and 1.06 times as much in that one as in one of four."""
NODE_MS = 17.0
"""Limit per layer of a step with prefill only, and of the attention in a longer one. An abort waits for one graph node,
and a layer's attention is one."""
STARVED = 1.4
"""On a starved machine, a whole tile may take this many times as long as the least number of rows."""
UNABORTABLE_MS = 25.0
"""Limit of a step with prefill only that cannot be aborted, so that stops wait for its end."""
SHORT_MS = 20.0
"""Limit of a step soon after an aborted one. It ends before the next stop needs to abort it, or little is lost."""
PROTECTED_MS = 50.0
"""Limit of a protected step's decode rows: half of the time that a stop may take. If they take longer, an overdue stop
aborts them."""
MIN_PREFILL_ROWS = 8
"""Minimum number of prefill rows of a step, however slow decoding is."""
BESIDE_NODE_MS = 8.0
"""As `NODE_MS`, for a step that is computed beside streams, in slices: streams wait for the node at a slice's end."""
BESIDE_MS = 50.0
"""Limit of a slice if there is no step of streams. New runs wait for its end."""
ABORT_MS = 20.0
"""An abort takes less than this. A step aborted later than this after its predicted end was slower than predicted."""
MAX_SLOWDOWN = 1000.0
MIXED_IN_A_ROW = 16
"""After this many mixed steps, one step decodes only. Otherwise a slower machine would be indistinguishable from an
expensive prompt, and the rest of the prompt would be computed eight rows at a time."""
PROBE_SMOOTHING = 0.5
FORGETTING = 0.02
"""How fast the least cost of a row comes closer to later, greater ones."""
MAX_ROWS = 512
"""Maximum number of rows of a step: the size of the context's micro-batch."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Pending work of one sequence: `rows` tokens after its `context` cells."""

    key: int
    rows: int
    context: int
    decoding: bool


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of one sequence in a step."""

    key: int
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a step: rows per sequence, and the predicted duration in ms."""

    shares: tuple[Share, ...]
    decode_rows: int
    prefill_rows: int
    prefill_context: int
    predicted_ms: float


class Pace(Enum):
    """Limits how long a step may take."""

    FULL = "the most efficient length"
    SHORT = "soon after an aborted step"
    PROTECTED = "for protected runs: only rows that certainly fit"


@dataclass(slots=True)
class CostEstimate:
    """Estimates how long rows take on this machine, from measured steps. All values in milliseconds.

    Costs of decode steps are stored by number of rows; costs of prefill rows by the context before them (in ranges of
    512 cells), and by whether their step had a whole tile of them. A value that was never measured is taken from the
    nearest measured one, on the slow side. A machine that suddenly becomes slower shows in aborted steps: the
    *slowdown* is a factor on all costs, which returns to 1 with completed steps.
    """

    first_guess_ms: float = 8.0
    """Cost of a row before anything is measured. A prompt's row is taken to cost what a step of one row took."""
    smoothing: float = 0.2
    slowdown: float = 1.0
    _mixed_in_a_row: int = 0
    _decode: dict[int, float] = field(default_factory=dict)
    _prefill: dict[bool, dict[int, float]] = field(default_factory=lambda: {False: {}, True: {}})
    _fastest: dict[int, float] = field(default_factory=dict)
    """The least cost of a row in steps of whole tiles. The difference of two of these is attention; the difference of
    two averages may be that of a quiet moment and a busy one."""

    def decode_ms(self, rows: int) -> float:
        """Time of a step with this many decode rows."""
        return 0.0 if rows == 0 else self.slowdown * self._learned_decode_ms(rows)

    def _learned_decode_ms(self, rows: int) -> float:
        if rows in self._decode:
            return self._decode[rows]
        below = max((n for n in self._decode if n < rows), default=None)
        above = min((n for n in self._decode if n > rows), default=None)
        if below is None and above is None:
            return self.first_guess_ms * rows
        if below is None:
            return self._decode[above] if above is not None else 0.0
        scaled = self._decode[below] * rows / below
        return scaled if above is None else min(scaled, self._decode[above])

    def prefill_row_ms(self, context: int, *, tiled: bool) -> float:
        """Time of one prefill row after this many cells, in a step with a whole tile of such rows or with fewer."""
        return self._row_ms(self._prefill[tiled] or self._prefill[not tiled], context)

    def _row_ms(self, seen: dict[int, float], context: int) -> float:
        if not seen:
            return self.decode_ms(1)
        wanted = _context_range(context)
        known = min(seen, key=lambda range_: (abs(range_ - wanted), -range_))
        # Attention grows with the context: rows beyond any measured context are estimated as more expensive.
        return self.slowdown * seen[known] * (1.0 + 0.1 * max(0, wanted - known))

    def attention_row_ms(self, context: int) -> float:
        """The part of a prefill row's time that grows with the context, in a step with a whole tile of rows."""
        known = self._fastest or self._prefill[False]
        if not known:
            return 0.0
        least = min(known.values())
        return max(0.0, self._row_ms(known, context) - self.slowdown * least)

    @property
    def wants_decode_alone(self) -> bool:
        """Whether decoding alone has not been measured for many steps, because a long prompt is prefilling."""
        return self._mixed_in_a_row >= MIXED_IN_A_ROW

    def learn(self, plan: Plan, took_ms: float) -> None:
        """Update from a completed step. Steps with only the last few rows of a prompt are ignored, because these rows
        bear the fixed cost of a whole step."""
        if plan.predicted_ms > 0:
            ratio = took_ms * self.slowdown / plan.predicted_ms
            self.slowdown = max(1.0, min(self.slowdown, (self.slowdown + ratio) / 2))
        if plan.prefill_rows == 0:
            smoothing = PROBE_SMOOTHING if self.wants_decode_alone else self.smoothing
            self._blend(self._decode, plan.decode_rows, took_ms, smoothing)
            self._mixed_in_a_row = 0
            return
        self._mixed_in_a_row += plan.decode_rows > 0
        if plan.prefill_rows >= MIN_PREFILL_ROWS:
            rest = max(took_ms - self.decode_ms(plan.decode_rows), took_ms * 0.1)
            tiled = plan.prefill_rows >= TILE_ROWS
            place, row_ms = _context_range(plan.prefill_context), rest / plan.prefill_rows
            self._blend(self._prefill[tiled], place, row_ms, self.smoothing)
            if tiled:
                faster = row_ms < self._fastest.get(place, row_ms)
                self._blend(self._fastest, place, row_ms, 1.0 if faster else FORGETTING)
            if not tiled and place in self._prefill[True]:
                # A tile's rows cost no more than those of a smaller step. So one slow tile does not prevent the next.
                self._prefill[True][place] = min(self._prefill[True][place], row_ms)

    def aborted(self, plan: Plan, took_ms: float) -> None:
        """Update from an aborted step. If it ran longer than predicted before the abort, the machine is slower."""
        if plan.predicted_ms > 0 and took_ms - ABORT_MS > plan.predicted_ms:
            slower = (took_ms - ABORT_MS) / plan.predicted_ms
            self.slowdown = min(self.slowdown * slower, MAX_SLOWDOWN)

    def _blend(self, known: dict[int, float], key: int, value: float, smoothing: float) -> None:
        old = known.get(key)
        known[key] = value if old is None else old + smoothing * (value - old)


def plan_step(
    pending: Rows[Pending],
    cost: CostEstimate,
    *,
    pace: Pace = Pace.FULL,
    abortable: bool = True,
    layers: int = 30,
    node_ms: float = NODE_MS,
) -> Plan:
    """Fill a step: all decode rows first, then prefill.

    The oldest prompt gets half of the prefill, so that newer prompts delay it by at most a factor of two. The other
    half goes to the shortest prompts first, so that they do not wait for the prefill of a long prompt.

    Args:
        pending: the pending work of each sequence, oldest first.
        cost: the estimated cost of rows.
        pace: limits the step. `PROTECTED` takes only as many decode rows as fit, and no prefill without time for it;
            the runs left out come next.
        abortable: whether the backend can abort a step at all.
        layers: the model's number of layers.
        node_ms: limit of a graph node in a step with prefill only, in which nobody can interrupt it.
    """
    decoding = tuple(Share(one.key, 1) for one in pending if one.decoding)
    if pace is Pace.PROTECTED:
        fitting = (n for n in range(len(decoding), 1, -1) if cost.decode_ms(n) <= PROTECTED_MS)
        decoding = decoding[: next(fitting, 1)]
    decode_ms = cost.decode_ms(len(decoding))
    alone_ms = min(PREFILL_MS, node_ms * layers) if abortable else UNABORTABLE_MS
    budget = _mixed_ms(decode_ms) if decoding else alone_ms
    at_least = MIN_PREFILL_ROWS
    if pace is not Pace.FULL:
        budget = min(budget, SHORT_MS)
        at_least = 0 if pace is Pace.PROTECTED and decoding else 1
    readers = [] if decoding and cost.wants_decode_alone else [one for one in pending if not one.decoding]
    if not readers:
        return Plan(decoding, len(decoding), 0, 0, decode_ms)
    limits = _Limits(budget, MAX_ROWS - len(decoding), at_least)
    filled = _Prefill(readers, cost, decode_ms, layers, node_ms).fill(
        limits, stretches=pace is Pace.FULL and abortable
    )
    shares = decoding + tuple(Share(key, rows) for key, rows in filled.taken.items())
    return Plan(shares, len(decoding), filled.rows, filled.context, filled.predicted_ms)


def beside_ms(cost: CostEstimate, plan: Plan | None) -> float:
    """How long other prompts may be computed after this step of the streams, so that both last as long as a step with
    decode and prefill rows."""
    if plan is None or not plan.shares:
        return BESIDE_MS
    return max(0.0, _mixed_ms(cost.decode_ms(plan.decode_rows)) - plan.predicted_ms)


def _mixed_ms(decode_ms: float) -> float:
    """Limit of a step whose decode rows take this long."""
    return max(MIXED_MS, MIXED_RATIO * decode_ms)


@dataclass(frozen=True, slots=True)
class _Limits:
    """Limits of a step: its time in ms, its most prefill rows, and its least, whatever they cost."""

    budget_ms: float
    rows: int
    at_least: int


@dataclass(frozen=True, slots=True)
class _Filled:
    """The prefill part of a step: rows by key, their total, the longest context, and the step's time in ms."""

    taken: dict[int, int]
    rows: int
    context: int
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class _Prefill:
    """The prefill part of a step with decode rows that take `decode_ms`."""

    readers: list[Pending]
    cost: CostEstimate
    decode_ms: float
    layers: int
    node_ms: float

    def fill(self, limits: _Limits, *, stretches: bool) -> _Filled:
        """Whole tiles within the limits, or else fewer rows than a tile. A step that `stretches` may last longer if it
        becomes more efficient."""
        filled = self._assign(limits, tiled=True)
        total = sum(one.rows for one in self.readers)
        if stretches and not self.decode_ms:
            completes_only = len(self.readers) == 1 and total < 5 * TILE_ROWS
            for number in (4, 2, 1) if completes_only else (2, 1):
                rows = number * TILE_ROWS
                longer = replace(limits, budget_ms=limits.budget_ms * STRETCH[number], rows=rows)
                tiles = self._assign(longer, tiled=True)
                attention_ms = rows * self.cost.attention_row_ms(tiles.context) / self.layers
                if filled.rows < tiles.rows == min(total, rows) and attention_ms <= self.node_ms:
                    limits, filled = longer, tiles
        if filled.rows >= TILE_ROWS:
            rows = filled.rows if self.decode_ms else self._whole_tiles(filled, total)
            return self._assign(_at_most(limits, rows), tiled=True)
        fewer = self._assign(_at_most(limits, TILE_ROWS - 1), tiled=False)
        if stretches and fewer.predicted_ms > limits.budget_ms:
            # Nothing fits: on a starved machine every step takes long, so make this one worthwhile.
            tile = self._assign(
                replace(limits, rows=min(limits.rows, TILE_ROWS), at_least=TILE_ROWS), tiled=True
            )
            if tile.rows == TILE_ROWS and tile.predicted_ms <= fewer.predicted_ms * STARVED:
                return tile
        return fewer

    def _whole_tiles(self, filled: _Filled, total: int) -> int:
        """Number of rows, of those that fit, that fill whole tiles. The last rows of the `total`, less than a tile, get
        a step of their own if that takes less time than a tile that is mostly empty. If not, they go with a whole one.
        """
        last = total % TILE_ROWS
        attention_ms = self.cost.attention_row_ms(filled.context)
        row_ms = self.cost.prefill_row_ms(filled.context, tiled=True) - attention_ms
        apart_ms = self.cost.decode_ms(1) + last * self.cost.prefill_row_ms(filled.context, tiled=False)
        apart = apart_ms < last * row_ms + TILE_ROWS * attention_ms
        if filled.rows >= total and not (apart and total > TILE_ROWS):
            return filled.rows
        tiles = filled.rows // TILE_ROWS
        joined = not apart and 0 < total - tiles * TILE_ROWS < TILE_ROWS and tiles > 1
        return (tiles - joined) * TILE_ROWS

    def _assign(self, limits: _Limits, *, tiled: bool) -> _Filled:
        """Assign rows until the limits are reached: half to the oldest prompt, then the rest to the shortest."""
        taken: dict[int, int] = {}
        rows = deepest = 0
        predicted = self.decode_ms
        turns = [(one, True) for one in self.readers[:1]]
        turns += [(one, False) for one in sorted(self.readers, key=lambda one: one.rows)]
        for one, half in turns:
            row_ms = self.cost.prefill_row_ms(one.context, tiled=tiled)
            affordable = int((limits.budget_ms - predicted) / row_ms) if row_ms > 0 else MAX_ROWS
            affordable = min(max(affordable, limits.at_least - rows), limits.rows - rows)
            more = min(one.rows - taken.get(one.key, 0), (affordable + 1) // 2 if half else affordable)
            if more > 0:
                taken[one.key] = taken.get(one.key, 0) + more
                rows += more
                deepest = max(deepest, one.context)
                predicted += more * row_ms
        return _Filled(taken, rows, deepest, predicted)


def _at_most(limits: _Limits, rows: int) -> _Limits:
    return replace(limits, rows=min(limits.rows, rows))


def _context_range(context: int) -> int:
    return context // 512
