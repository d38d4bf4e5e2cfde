"""A run while the engine holds it: its tokens, how many of them are in KV cells, and its text so far."""

from worker_orcd.engine.logprobs import logprobs_of
from worker_orcd.engine.model import Model
from worker_orcd.engine.planner import Pending
from worker_orcd.engine.slot import Slot
from worker_orcd.engine.text import TextAssembler
from worker_orcd.protocol.messages import EndOfRun, Run, TokenOut


class Sequence:
    """One run in one slot.

    The slot's tokens are prompt and generated ones; the first `computed` of them are in KV cells. If one token is not,
    and the run has generated some, the run is decoding. If more are not, the prompt is being computed (or computed
    again, after the run was requeued).
    """

    def __init__(self, run: Run, slot: Slot, model: Model) -> None:
        self.run = run
        self.slot = slot
        self.tokens = slot.tokens
        self.sampler = model.sampler(run.sampling, self.tokens)
        self._text = TextAssembler(run.stop)
        for token in run.generated:
            self._text.feed(model.piece(token))

    @property
    def id(self) -> int:
        """Its sequence id in the model, as the ledger has it now."""
        return self.slot.id

    @property
    def computed(self) -> int:
        """Tokens that are in KV cells."""
        return self.slot.computed

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.run.prompt)

    @property
    def prompt_processed(self) -> int:
        """Prompt tokens that are in KV cells."""
        return min(self.computed, len(self.run.prompt))

    @property
    def prompt_cached(self) -> int:
        """Prompt tokens that were in KV cells when the run got its slot."""
        return min(self.slot.reused, len(self.run.prompt))

    @property
    def pending(self) -> Pending:
        """What it wants of the next step."""
        decoding = len(self.tokens) - self.computed == 1 and self.generated > 0
        return Pending(self.run.run, self.slot.pending, self.computed, decoding)

    def draw(self, row: int, model: Model) -> tuple[list[TokenOut], EndOfRun | None]:
        """Draw its next token from row `row` of the step that just ran.

        Returns:
            What its readers get of it, and its end if this is the end; the cells in that are filled in when freed.
        """
        run, wanted = self.run.run, self.run.sampling.logprobs
        logits = b"" if wanted is None else model.logits(row)  # Before masks change them.
        token = self.sampler.draw(row, self.generated)
        if self._ends(token, model):
            held = self._text.finish()
            return [TokenOut(run, None, held)] if held else [], EndOfRun(run, "stop", 0, 0)
        logprobs = () if wanted is None else logprobs_of(logits, token, wanted, model.name)
        self.tokens.append(token)
        text = self._text.feed(model.piece(token))
        if self._text.stopped:
            return [TokenOut(run, token, text, logprobs=logprobs)], EndOfRun(run, "stop_sequence", 0, 0)
        if self.generated >= self.run.max_tokens:
            text += self._text.finish()
            return [TokenOut(run, token, text, logprobs=logprobs)], EndOfRun(run, "length", 0, 0)
        return [TokenOut(run, token, text, self._text.held, logprobs)], None

    def _ends(self, token: int, model: Model) -> bool:
        """Whether the output ends before this token."""
        sampling = self.run.sampling
        return token in sampling.stop_token_ids or (model.ends_generation(token) and not sampling.ignore_eos)
