"""Constrained runs in the engine's loop, which is turned by hand. A stand-in says what their grammars allow."""

import pytest

from tests.fakes import HandLoop, MakeLoop, run_message
from worker_orcd.engine.grammars.masks import ConstraintRefused, Grammars, GrammarsLost, MaskLate
from worker_orcd.engine.grammars.messages import Mask
from worker_orcd.engine.run import Run
from worker_orcd.protocol.messages import Constraint, Step, Stop
from worker_orcd.testing.scripted import END, VOCABULARY

ANY = Constraint("gbnf", "root ::= [a]*")
LONG = "x" * 300


def only(*tokens: int) -> Mask:
    """A mask that allows only these tokens."""
    bits = sum(1 << token for token in tokens)
    return Mask(bits.to_bytes(VOCABULARY // 8 + 1, "little"), complete=False)


class HandMatcher:
    """A matcher whose masks come from the test."""

    def __init__(self, generated: tuple[int, ...]) -> None:
        self.accepted = list(generated)
        self.ready = True
        self.next: Mask | Exception = only(97)
        self.waited = 0
        self.open = True

    def wait(self, seconds: float) -> None:
        """Note it."""
        self.waited += 1

    def mask(self) -> Mask:
        """The one that was given."""
        assert self.ready, "the loop waits for a mask"
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def accept(self, token: int) -> None:
        """Note it."""
        self.accepted.append(token)

    def close(self) -> None:
        """Note it."""
        assert self.open
        self.open = False


class HandGrammars(Grammars):
    """Grammars whose matchers the test controls, by the grammars' texts."""

    def __init__(self) -> None:
        self.matchers: list[HandMatcher] = []
        self.ready = True

    def matcher(  # type: ignore[override]  # A stand-in.
        self, constraint: Constraint, generated: tuple[int, ...], *, ignore_eos: bool, opened: str
    ) -> HandMatcher:
        """One more."""
        assert not opened
        matcher = HandMatcher(generated)
        matcher.ready = self.ready
        self.matchers.append(matcher)
        return matcher


@pytest.fixture
def loop(make_loop: MakeLoop) -> HandLoop:
    """A loop whose grammars the test controls."""
    it = make_loop()
    it.model.grammars = HandGrammars()
    return it


def matchers_of(it: HandLoop) -> list[HandMatcher]:
    """The matchers of its runs, in the order in which these began."""
    assert isinstance(it.model.grammars, HandGrammars)
    return it.model.grammars.matchers


def constrained(run: int, prompt: str = "", generated: tuple[int, ...] = (), max_tokens: int = 8) -> Run:
    """A run with a grammar."""
    return run_message(run, prompt, constraint=ANY, generated=generated, max_tokens=max_tokens)


def begun(it: HandLoop, run: Run) -> HandMatcher:
    """The matcher of a run that has generated a token."""
    it.post(run)
    while not it.tokens(run.number):
        it.turn()
    return matchers_of(it)[-1]


def test_only_allowed_tokens_are_drawn(loop: HandLoop) -> None:
    """The scripted model's own choice is a token that is not allowed."""
    matcher = begun(loop, constrained(1, '{"text": "zzzzzzzz", "token_ms": 0, "row_ms": 0}'))
    loop.finish()
    assert loop.text(1) == "a" * 8
    assert matcher.accepted == [97] * 8
    assert loop.ends(1) == ["length"]
    assert not matcher.open


def test_a_complete_output_ends_its_run(loop: HandLoop) -> None:
    """With reason `stop`, and without another token, also where the model has none that ends."""
    matcher = begun(loop, constrained(1))
    matcher.next = Mask(only().bits, complete=True)
    loop.finish()
    assert (loop.ends(1), loop.text(1)) == (["stop"], "a")


def test_an_output_that_is_complete_with_its_last_token_ends_by_itself(loop: HandLoop) -> None:
    """Its reason is `stop`; `length` would mean that the output was cut."""
    matcher = begun(loop, constrained(1, max_tokens=2))
    it = matcher.accept

    def complete(token: int) -> None:
        it(token)
        matcher.next = Mask(only(END).bits, complete=True)

    matcher.accept = complete  # type: ignore[method-assign]
    loop.finish()
    assert (loop.ends(1), loop.text(1)) == (["stop"], "aa")


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConstraintRefused("too much"), "INVALID_REQUEST"), (GrammarsLost("gone"), "INTERNAL")],
)
def test_a_grammar_that_fails_ends_its_run_alone(loop: HandLoop, error: Exception, code: str) -> None:
    """The run ends with the reason; its neighbour continues."""
    loop.post(run_message(2, max_tokens=20))
    matcher = begun(loop, constrained(1))
    matcher.next = error
    loop.finish()
    assert (loop.ends(1), loop.ends(2)) == ([code], ["length"])
    assert len(loop.tokens(2)) == 20


def test_a_run_whose_mask_is_late_begins_again_where_it_is(loop: HandLoop) -> None:
    """Its tokens so far are kept, and its cells stay warm; no token is drawn without a mask."""
    late = begun(loop, constrained(1))
    loop.turn(2)
    late.next = MaskLate()
    loop.turn()
    assert not late.open
    loop.finish()
    *_, again = matchers_of(loop)
    assert again.accepted == [97] * 8
    assert (loop.text(1), loop.ends(1)) == ("a" * 8, ["length"])
    assert [run for step in loop.steps for run in step.preempted] == [1]


def test_a_run_whose_grammar_is_not_ready_delays_no_other(loop: HandLoop) -> None:
    """Its prompt is computed but for the last row, then it waits; its neighbour gets a token in every step."""
    assert isinstance(loop.model.grammars, HandGrammars)
    loop.model.grammars.ready = False
    begun_at = len(loop.steps)
    loop.post(run_message(2, max_tokens=40), constrained(1, LONG))
    while len(loop.tokens(2)) < 30:
        loop.turn()
    [matcher] = matchers_of(loop)
    assert not loop.tokens(1)
    assert max(progress.prompt_processed for step in loop.steps for progress in step.progress) >= len(LONG)
    assert all(step.outcome == "done" for step in loop.steps[begun_at:])
    matcher.ready = True
    loop.finish()
    assert loop.text(1) == "a" * 8
    assert len(loop.tokens(2)) == 40


def test_alone_a_run_waits_for_its_grammar_without_a_step(loop: HandLoop) -> None:
    """A stop during the wait takes effect."""
    assert isinstance(loop.model.grammars, HandGrammars)
    loop.model.grammars.ready = False
    loop.post(constrained(1))
    loop.turn(40)
    [matcher] = matchers_of(loop)
    steps = len(loop.steps)
    loop.turn(5)
    assert len(loop.steps) == steps
    assert matcher.waited >= 5
    loop.post(Stop(1))
    assert loop.turn_idle()
    assert [stopped.run for stopped in loop.stopped] == [1]
    assert not matcher.open


def test_a_requeued_run_is_followed_from_its_tokens_so_far(loop: HandLoop) -> None:
    """Its masks are those that it would have had without the requeue."""
    matcher = begun(loop, constrained(1, generated=(97, 97)))
    assert matcher.accepted == [97, 97, 97]
    assert all(isinstance(step, Step) for step in loop.steps)
