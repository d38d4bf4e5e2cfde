"""A run that has a slot: its tokens, how many of them are in KV cells, and its text so far."""

from typing import Literal

from msgspec.structs import replace

from worker_orcd.engine.grammars.masks import ConstraintRefused, GrammarsLost, MaskLate, Matcher
from worker_orcd.engine.logprobs import logprobs_of
from worker_orcd.engine.model import Model
from worker_orcd.engine.planner import MIN_PREFILL_ROWS, Pending
from worker_orcd.engine.pooling import NotFinite, Pool
from worker_orcd.engine.run import Run
from worker_orcd.engine.slot import Slot
from worker_orcd.engine.text import TextAssembler
from worker_orcd.protocol.messages import EndOfRun, PromptLogprobs, TokenOut
from worker_orcd.sampling import Logprobs, TokenLogprob
from worker_orcd.tool_calls.formats import REASONING, SHOWN_MARKS

_MARK_TOKENS = 16
"""The most tokens of a reasoning mark at the end of a prompt, white space included."""
SCORED_LOGITS = 2_000_000
"""The most rows per step of a prompt with `prompt_logprobs`: the step's end waits for their log probabilities."""


class Sequence:
    """One run in one slot.

    The slot's tokens are the prompt and the generated tokens; the first `computed` of them are in KV cells. If only one
    token is not, and the run has generated tokens, the run is decoding. Otherwise it is prefilling (again, if it was
    requeued).
    """

    def __init__(self, run: Run, slot: Slot, model: Model) -> None:
        request = run.request
        self.run = run
        self.slot = slot
        self.tokens = slot.tokens
        self.sampler = model.sampler(request.sampling, self.tokens)
        self._scored_rows = max(MIN_PREFILL_ROWS, SCORED_LOGITS // model.facts.vocab_size)
        self._pool: Pool | None = None
        if request.embed is not None:
            self._pool = Pool(model.pooling, len(run.prompt), request.embed)
        self._marks = SHOWN_MARKS[request.marks]
        opened = self._opened_reasoning(model)
        self._matcher: Matcher | None = None
        if request.constraint is not None:
            self._matcher = model.grammars.matcher(
                request.constraint, run.generated, ignore_eos=request.sampling.ignore_eos, opened=opened
            )
        self._text = TextAssembler(request.stop, request.sampling.n_indent)
        self._first_drawn_at: float | None = None
        self._opened = "" if run.generated else opened
        for token in run.generated:
            self._text.feed(self._piece(token, model))

    @property
    def id(self) -> int:
        """The current sequence id in the model. The ledger may change it."""
        return self.slot.id

    @property
    def computed(self) -> int:
        """Number of tokens in KV cells."""
        return self.slot.holder.length

    @property
    def generated(self) -> int:
        """Number of tokens generated so far."""
        return len(self.tokens) - len(self.run.prompt)

    @property
    def prompt_processed(self) -> int:
        """Number of prompt tokens in KV cells."""
        return min(self.computed, len(self.run.prompt))

    @property
    def prompt_cached(self) -> int:
        """Number of prompt tokens that were in KV cells when the run got its slot."""
        return min(self.slot.reused, len(self.run.prompt))

    @property
    def pending(self) -> Pending:
        """Pending work for the next step. A constrained run leaves out the last row, from which a token is drawn, while
        its grammar is not ready."""
        computed, rows = self.computed, self.slot.pending
        left = len(self.tokens) - computed
        if self.wants_logits(computed):
            rows = min(rows, self._scored_rows)
        if rows == left and self._matcher is not None and not self._matcher.ready:
            rows -= 1
        return Pending(self.run.number, rows, computed, decoding=left == 1 and self.generated > 0)

    @property
    def rest(self) -> Run:
        """The run as it continues in another slot. A prompt with complete log probabilities is not scored again."""
        request = self.run.request
        if not self.wants_logits(self.computed):
            request = replace(request, prompt_logprobs=None)
        return replace(self.run, request=request, generated=tuple(self.tokens[len(self.run.prompt) :]))

    def wants_logits(self, position: int) -> bool:
        """Whether the logits of a prompt token's row are needed to score the prompt's next token."""
        return self.run.request.prompt_logprobs is not None and position < len(self.run.prompt) - 1

    def wants_embedding(self, position: int) -> bool:
        """Whether the embedding of a prompt token's row is needed."""
        return self._pool is not None and self._pool.wants(position)

    def pool(self, row: int, rows: int, model: Model) -> None:
        """Add the embeddings of `rows` rows from `row` on, which were just computed but are not yet counted."""
        pool, begin = self._pool, self.computed
        if pool is not None:
            for n in (n for n in range(rows) if pool.wants(begin + n)):
                pool.add(begin + n, model.embedding(row + n))

    def score(self, row: int, rows: int, model: Model) -> list[PromptLogprobs]:
        """Log probabilities of the prompt tokens that follow these rows, which are not yet counted as computed."""
        begin = self.computed
        scored = [
            self._logprobs_behind(begin + n, row + n, model)
            for n in range(rows)
            if self.wants_logits(begin + n)
        ]
        if begin == 0:
            scored.insert(0, self._first_logprobs(model))
        first = begin + 1 if begin else 0
        return [PromptLogprobs(self.run.number, first, tuple(scored))] if scored else []

    def _logprobs_behind(self, position: int, row: int, model: Model) -> Logprobs:
        """Log probability of the prompt token after this position, whose row was just computed."""
        return logprobs_of(
            model.logits(row),
            self.run.prompt[position + 1],
            self.run.request.prompt_logprobs or 0,
            model.name,
        )

    def _first_logprobs(self, model: Model) -> Logprobs:
        """Log probability of the first prompt token: none, because nothing precedes it."""
        return (TokenLogprob(self.run.prompt[0], model.name(self.run.prompt[0]), None),)

    def wait(self, seconds: float) -> None:
        """Wait for the run's grammar, at most this long."""
        if self._matcher is not None:
            self._matcher.wait(seconds)

    def close(self) -> None:
        """Free all resources except the slot."""
        self.sampler.close()
        if self._matcher is not None:
            self._matcher.close()

    def draw(self, row: int, model: Model, now: float) -> tuple[list[TokenOut], EndOfRun | None]:
        """Draw the next token from row `row` of the last step.

        Args:
            row: the row from whose logits the token is drawn.
            model: the model that computed the step.
            now: the time in seconds.

        Returns:
            The tokens for readers, and the run's end if this is the end. The end's cells are filled in when freed.

        Raises:
            MaskLate: the run's mask is not ready. The run has to begin again where it is.
        """
        if self._pool is not None:
            return [], self._embedded(self._pool)
        if self.generated >= self.run.max_tokens:
            return [], EndOfRun(self.run.number, "length", 0, 0)  # Requested: only prompt logprobs.
        try:
            return self._draw(row, model, now)
        except ConstraintRefused as error:
            return self._rest(), EndOfRun(self.run.number, None, 0, 0, "INVALID_REQUEST", str(error))
        except GrammarsLost as error:
            return self._rest(), EndOfRun(self.run.number, None, 0, 0, "INTERNAL", str(error))

    def _embedded(self, pool: Pool) -> EndOfRun:
        try:
            return EndOfRun(self.run.number, "stop", 0, 0, embedding=pool.whole())
        except NotFinite as error:
            return EndOfRun(self.run.number, None, 0, 0, "INTERNAL", str(error))

    def _draw(self, row: int, model: Model, now: float) -> tuple[list[TokenOut], EndOfRun | None]:
        run, wanted, constraint = self.run.number, self.run.request.sampling.logprobs, self._matcher
        mask = None if constraint is None else constraint.mask()
        if mask is not None and mask.complete:
            return self._rest(), EndOfRun(run, "stop", 0, 0)
        logits = b"" if wanted is None else model.logits(row)  # Read before masks change the logits.
        token = self.sampler.draw(row, self.generated, None if mask is None else mask.bits)
        if self._ends(token, model):
            return self._rest(), EndOfRun(run, "stop", 0, 0)
        logprobs = () if wanted is None else logprobs_of(logits, token, wanted, model.name)
        self.tokens.append(token)
        if constraint is not None:
            constraint.accept(token)
        text, self._opened = self._opened + self._text.feed(self._piece(token, model)), ""
        if self._text.stopped:
            return [TokenOut(run, token, text, logprobs=logprobs)], EndOfRun(run, "stop_sequence", 0, 0)
        if self._text.cut:
            return [TokenOut(run, token, text, logprobs=logprobs)], EndOfRun(run, "length", 0, 0)
        if self.generated >= self.run.max_tokens or self._is_late(text, now):
            reason: Literal["stop", "length"] = "stop" if self._is_whole() else "length"
            text += self._text.finish()
            return [TokenOut(run, token, text, logprobs=logprobs)], EndOfRun(run, reason, 0, 0)
        return [TokenOut(run, token, text, self._text.held, logprobs)], None

    def _is_late(self, text: str, now: float) -> bool:
        """Whether the output ends with this text, because it has a line break after `t_max_predict_ms`. This time
        starts again when the run is requeued."""
        if self._first_drawn_at is None:
            self._first_drawn_at = now
        most, spent_ms = self.run.request.sampling.t_max_predict_ms, (now - self._first_drawn_at) * 1000
        return 0 < most < spent_ms and "\n" in text

    def _is_whole(self) -> bool:
        """Whether the grammar is complete with the last token."""
        try:
            return self._matcher is not None and self._matcher.mask().complete
        except (ConstraintRefused, GrammarsLost, MaskLate):
            return False

    def _rest(self) -> list[TokenOut]:
        """Text that was held back and is sent at the end."""
        held = self._text.finish()
        return [TokenOut(self.run.number, None, held)] if held else []

    def _piece(self, token: int, model: Model) -> bytes:
        """The bytes that a token adds to the text."""
        piece = model.piece(token)
        if piece or not self._marks:
            return piece
        name = model.name(token)
        return name if name in self._marks else b""

    def _opened_reasoning(self, model: Model) -> str:
        """The reasoning mark at the end of the prompt, if any. The output is shown as if it began with this mark.

        A constrained output has no reasoning, except beside tools.
        """
        constraint = self.run.request.constraint
        if not self._marks or (constraint is not None and constraint.kind != "tools"):
            return ""
        end = b"".join(map(model.name, self.run.prompt[-_MARK_TOKENS:])).rstrip()
        return next((begins for begins, _ in REASONING if end.endswith(begins.encode())), "")

    def _ends(self, token: int, model: Model) -> bool:
        """Whether this token ends the output. A grammar allows end tokens only where the output may end."""
        sampling = self.run.request.sampling
        ends = model.ends_generation(token) and (self._matcher is not None or not sampling.ignore_eos)
        return ends or token in sampling.stop_token_ids
