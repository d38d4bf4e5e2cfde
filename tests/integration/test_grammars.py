"""Grammars are compiled and applied in processes with limits, for which the engine's loop never waits."""

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.grammars import TOY, tokens_of, write
from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.frames import receive, send
from worker_orcd.engine.grammars.compiler import Compiler
from worker_orcd.engine.grammars.masks import ConstraintRefused, Grammars, MaskLate, Matcher
from worker_orcd.engine.grammars.messages import Accept, Begin, Mask
from worker_orcd.protocol.messages import Constraint
from worker_orcd.testing.harness import wait_until

ENDLESS = Constraint("json_schema", json.dumps({"properties": {f"p{n}": {} for n in range(20_000)}}))
"""Takes a minute to compile."""
SLOW = Constraint(
    "json_schema",
    json.dumps(
        {"properties": {f"p{n}": {} for n in range(5000)}, "required": [f"p{n}" for n in range(5000)]}
    ),
)
"""Takes half a second."""
WORDS = Constraint("regex", "[ab]+ [0-9]+")
AMBIGUOUS = Constraint("gbnf", f'root ::= s\ns ::= {" | ".join("s " * n for n in range(2, 17))} | "a"')
"""Each further `a` can be parsed in many more ways."""


class Followed:
    """A matcher as `write` takes it."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def accept(self, tokens: tuple[int, ...]) -> None:
        """One after the other."""
        for token in tokens:
            self._matcher.accept(token)

    def mask(self) -> Mask:
        """Wait for it, however busy the machine is."""
        self._matcher.wait(30)
        return self._matcher.mask()


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    """For the small vocabulary."""
    grammars = Grammars(lambda: TOY)
    yield grammars
    grammars.close()


def server_of(grammars: Grammars) -> psutil.Process:
    """The process."""
    assert grammars.server.pid is not None
    return psutil.Process(grammars.server.pid)


def test_a_run_is_given_the_masks_of_its_grammar(grammars: Grammars) -> None:
    """They start after its tokens so far, also when the process dies in the middle."""
    grammars.check(WORDS)
    compiled = Compiler(TOY).compile(WORDS)
    compiled.accept(tokens_of("ab 1"))
    matcher = grammars.matcher(WORDS, tokens_of("ab "))
    matcher.mask()
    matcher.accept(tokens_of("1")[0])
    assert matcher.mask() == compiled.mask()
    server = server_of(grammars)
    processes = [server, *server.children()]
    server.kill()
    psutil.wait_procs(processes, timeout=30)
    matcher.accept(tokens_of("2")[0])
    compiled.accept(tokens_of("2"))
    assert matcher.mask() == compiled.mask()
    assert write(Followed(matcher), random.Random(1)) is not None
    matcher.close()


def test_a_constraint_that_takes_too_much_is_refused_alone(grammars: Grammars) -> None:
    """The next constraint is compiled."""
    with pytest.raises(ConstraintRefused, match="too much time or memory"):
        grammars.check(ENDLESS)
    grammars.check(WORDS)


def test_a_constraint_whose_job_has_ended_is_not_compiled_on(grammars: Grammars) -> None:
    """Its process is killed at once, whatever it computes."""
    grammars.check(WORDS)
    before = set(server_of(grammars).children())
    in_hand, reasons = CurrentPrompt(), []

    def check() -> None:
        with pytest.raises(ConstraintRefused) as refused:
            grammars.check(ENDLESS, in_hand)
        reasons.append(str(refused.value))

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    wait_until(
        lambda: bool(set(server_of(grammars).children()) - before),
        within_sec=30,
        what="a child that compiles",
    )
    [child] = set(server_of(grammars).children()) - before
    wait_until(lambda: sum(child.cpu_times()[:2]) > 0.05, within_sec=30, what="a child that computes")
    in_hand.drop()
    thread.join(30)
    assert reasons == ["the job has ended"]
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive


def test_a_run_takes_part_in_no_step_before_its_grammar_is_compiled(grammars: Grammars) -> None:
    """The engine's loop does not wait for it, and closing it ends its process."""
    grammars.check(WORDS)
    before = set(server_of(grammars).children())
    matcher = grammars.matcher(ENDLESS, ())
    wait_until(
        lambda: bool(set(server_of(grammars).children()) - before),
        within_sec=30,
        what="a child that compiles",
    )
    [child] = set(server_of(grammars).children()) - before
    assert not matcher.ready
    matcher.close()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive


def test_a_grammar_that_gets_too_complex_ends_its_run_with_a_reason(grammars: Grammars) -> None:
    """Its neighbours get their masks."""
    neighbour = grammars.matcher(WORDS, tokens_of("a"))
    matcher = grammars.matcher(AMBIGUOUS, ())

    def follow() -> None:
        while True:
            Followed(matcher).mask()
            matcher.accept(tokens_of("a")[0])

    with pytest.raises(ConstraintRefused, match=r"Too many items|Current row|too much time"):
        follow()
    assert write(Followed(neighbour), random.Random(1)) is not None
    neighbour.close()
    matcher.close()


def test_a_process_that_gets_no_cpu_refuses_no_grammar(grammars: Grammars) -> None:
    """A step waits for its mask for half a second at most; the run then begins again, and no step waits for a while."""
    grammars.check(WORDS)
    before = set(server_of(grammars).children())
    matcher = grammars.matcher(WORDS, ())
    Followed(matcher).mask()
    [child] = set(server_of(grammars).children()) - before
    child.suspend()
    matcher.accept(tokens_of("a")[0])
    assert matcher.ready
    with pytest.raises(MaskLate):
        matcher.mask()
    matcher.close()
    child.resume()
    again = grammars.matcher(WORDS, tokens_of("a"))
    Followed(again).mask()
    [child] = set(server_of(grammars).children()) - before - {child}
    child.suspend()
    again.accept(tokens_of("b")[0])
    assert not again.ready
    child.resume()
    assert write(Followed(again), random.Random(1)) is not None
    again.close()
    grammars.starved_until = 0.0


def test_a_message_ends_no_child_that_computes(grammars: Grammars) -> None:
    """Only the end of its run does. The kernel may signal a message late; here the message itself is late."""
    grammars.check(WORDS)
    wait_until(lambda: not server_of(grammars).children(), within_sec=30, what="ended children")
    with grammars.server.conversation(CurrentPrompt()) as connection:
        send(connection, Begin(SLOW))
        wait_until(lambda: bool(server_of(grammars).children()), within_sec=30, what="a child that compiles")
        [child] = server_of(grammars).children()
        wait_until(lambda: sum(child.cpu_times()[:2]) > 0.05, within_sec=30, what="a child that computes")
        child.suspend()
        send(connection, Accept(tokens_of("{")[0]))
        child.resume()
        assert not receive(connection, Mask).complete
        assert not receive(connection, Mask).complete


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_masks_end_no_child(grammars: Grammars) -> None:
    """Each is asked for with a message. When messages could end children, that happened at 80 of 428,801 masks."""
    endless = Constraint("regex", "[ab]+")

    def masks(seed: int) -> int:
        matcher, rng = grammars.matcher(endless, ()), random.Random(seed)
        for _ in range(12_500):
            Followed(matcher).mask()
            matcher.accept(tokens_of(rng.choice("ab"))[0])
        matcher.close()
        return 12_500

    with ThreadPoolExecutor(8) as runs:
        assert sum(runs.map(masks, range(8))) == 100_000


def test_runs_leave_no_process_and_no_descriptor(grammars: Grammars) -> None:
    """Whether they end, fail or are stopped."""
    grammars.check(WORDS)
    wait_until(lambda: not server_of(grammars).children(), within_sec=30, what="ended children")
    before = psutil.Process().num_fds()
    for tokens in ("", "a", "?"):
        matcher = grammars.matcher(WORDS, tokens_of(tokens))
        if tokens == "?":
            with pytest.raises(ConstraintRefused):
                matcher.mask()
        elif tokens:
            matcher.mask()
        matcher.close()
    wait_until(lambda: psutil.Process().num_fds() == before, within_sec=30, what="closed descriptors")
    wait_until(lambda: not server_of(grammars).children(), within_sec=30, what="ended children")
