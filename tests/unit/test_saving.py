"""Prefixes in host memory, over the scripted model: what is copied when, and what is never computed again (G13)."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import HandLoop, run_message
from worker_orcd.engine.ledger import MIN_SHARED
from worker_orcd.engine.saving import EVERY, LAST_ROWS
from worker_orcd.protocol.messages import AuditFault, Stop, Stored
from worker_orcd.supervisor.prefix_memory import prefix_memory

KINDS: dict[str, dict[str, Any]] = {
    "attention": {},
    "sliding window": {"window": 100},
    "recurrent": {"recurrent": True},
    "exact": {"exact": True},
    "exact recurrent": {"exact": True, "recurrent": True},
}
PROMPT = "".join(f"{number:05} " for number in range(100))
"""600 characters, none of which repeat a prefix."""
HEAD = len(run_message(0, "").prompt)
"""Tokens that each prompt begins with here: its script."""
ALL = HEAD + len(PROMPT)


@pytest.fixture
def store() -> Iterator[int]:
    """The file that outlives engines."""
    fd = prefix_memory(16)
    yield fd
    os.close(fd)


def an_engine(store: int | None, **kind: Any) -> HandLoop:
    """A new engine over this store. Steps take few prefill rows, so that prompts take several."""
    loop = HandLoop(cells=8192, store=store, **kind)
    loop.model.prefill_row_ms = 6.0
    loop.warm_up()
    return loop


def computed(loop: HandLoop, run: int, prompt: str, **given: Any) -> int:
    """Prompt tokens that the engine computes for a run."""
    before = len(loop.steps)
    loop.post(run_message(run, prompt, **{"max_tokens": 4, "cache": "a"} | given))
    loop.finish()
    assert loop.faults == []
    return sum(step.prompt_computed for step in loop.steps[before:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_retry_computes_the_last_token_only(store: int, kind: str) -> None:
    """On every kind of memory, and on another engine than the one that computed the prompt."""
    loop = an_engine(store, **KINDS[kind])
    assert computed(loop, 1, PROMPT, max_tokens=MIN_SHARED + 10) == ALL
    assert computed(loop, 2, PROMPT) == 1
    fresh = an_engine(store, **KINDS[kind])
    assert computed(fresh, 1, PROMPT) == 1
    for engine in (loop, fresh):
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_s_next_turn_computes_what_is_new(store: int, kind: str) -> None:
    """The new prompt continues the old prompt, or the old answer."""
    loop = an_engine(store, **KINDS[kind])
    prompt, everything = PROMPT, 0
    for turn in range(4):
        everything += computed(loop, turn, prompt)
        prompt += f"Then turn {turn} is about something else, which takes about sixty tokens. "
    last = HEAD + prompt.rindex("Then")
    kept_back = 1 + (
        4 - 1
    )  # The last token of each prompt is computed for its logits, and again with the next one.
    assert everything <= last + kept_back
    loop.close()


@pytest.mark.parametrize("kind", ["attention", "exact"])
def test_prompts_that_branch_off_compute_their_own_part(store: int, kind: str) -> None:
    """Where a sequence can be cut back, any common prefix will do."""
    loop = an_engine(store, **KINDS[kind])
    assert computed(loop, 1, PROMPT + "one") == ALL + 3
    fresh = an_engine(store, **KINDS[kind])
    assert computed(fresh, 2, PROMPT + "two") == 3
    assert computed(fresh, 3, PROMPT[:300] + "another") == 7
    for engine in (loop, fresh):
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_choices_of_one_prompt_compute_it_once(store: int, kind: str) -> None:
    """They wait for the first, though cells cannot be shared everywhere."""
    loop = an_engine(store, **KINDS[kind])
    loop.post(*(run_message(run, PROMPT, cache="a", max_tokens=4) for run in range(4)))
    loop.finish()
    assert sum(step.prompt_computed for step in loop.steps) == ALL + 3
    assert loop.faults == []
    loop.close()


def test_separate_streams_share_a_system_prompt_by_way_of_the_store(store: int) -> None:
    """`--exact`: the store has a copy as soon as a run waits for one."""
    loop = an_engine(store, exact=True)
    system = PROMPT[:420]
    loop.post(*(run_message(run, system + f"{run} asks", cache="a", max_tokens=4) for run in range(4)))
    loop.finish()
    assert sum(step.prompt_computed for step in loop.steps) == HEAD + len(system) + 4 * len("0 asks")
    loop.close()


def test_a_part_that_cannot_be_reused_is_not_waited_for(store: int) -> None:
    """A recurrent state is past the common part when it is saved."""
    loop = an_engine(store, recurrent=True)
    loop.post(*(run_message(run, PROMPT[:300] + f"{run}" * (300 - 200 * run), cache="a") for run in range(2)))
    loop.turn(2)
    assert {progress.run for step in loop.steps for progress in step.progress} == {0, 1}
    loop.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_death_in_the_middle_of_a_long_prompt_costs_one_distance_at_most(store: int, kind: str) -> None:
    """What was computed until then is taken up by the next engine, and the output is the same."""
    alone = an_engine(None, **KINDS[kind])
    computed(alone, 1, PROMPT * 3)
    loop = an_engine(store, **KINDS[kind])
    loop.post(run_message(1, PROMPT * 3, cache="a", max_tokens=4))
    while sum(step.prompt_computed for step in loop.steps) < 1200:
        loop.turn()
    done = sum(step.prompt_computed for step in loop.steps)
    fresh = an_engine(store, **KINDS[kind])
    largest_step = 64
    assert computed(fresh, 1, PROMPT * 3) <= HEAD + 1800 - done + EVERY + largest_step
    assert fresh.text(1) == alone.text(1)
    for engine in (alone, loop, fresh):
        engine.close()


@pytest.mark.parametrize("kind", ["recurrent", "exact"])
def test_a_stopped_prompt_is_taken_up_where_it_was(store: int, kind: str) -> None:
    """A client with a short timeout is answered by its second try."""
    loop = an_engine(store, **KINDS[kind])
    loop.post(run_message(1, PROMPT, cache="a"))
    while sum(step.prompt_computed for step in loop.steps) < 100:
        loop.turn()
    done = sum(step.prompt_computed for step in loop.steps)
    loop.post(Stop(1))
    loop.finish()
    assert loop.stopped[-1].cells_warm == done
    assert loop.stopped[-1].cells_after == 0
    assert computed(loop, 2, PROMPT) == ALL - done
    loop.close()


def test_prefixes_of_another_namespace_are_not_found(store: int) -> None:
    """Nor those of a run that leaves none."""
    loop = an_engine(store, exact=True)
    assert computed(loop, 1, PROMPT) == ALL
    assert computed(loop, 2, PROMPT, cache="b") == ALL
    assert computed(loop, 3, PROMPT + "none", cache=None) == ALL + 4
    assert computed(loop, 4, PROMPT + "none") == 4
    loop.close()


def test_what_is_given_up_in_the_pool_comes_back_from_the_store(store: int) -> None:
    """The pool has room for only a part of the prefixes."""
    loop = HandLoop(cells=1000, store=store)
    for run in range(4):
        assert computed(loop, run, f"{run}" + PROMPT) == ALL + 1
    assert loop.loop.cells_cached < 700
    for run in range(4):
        assert computed(loop, 10 + run, f"{run}" + PROMPT) == 1
    loop.close()


def test_what_the_store_has_leaves_most_of_the_pool_to_live_runs(store: int) -> None:
    """Idle cells make their steps longer. What is not saved stays, up to a quarter of all cells."""
    loop = an_engine(store)
    unsaved = an_engine(None)
    for engine in (loop, unsaved):
        computed(engine, 1, PROMPT, max_tokens=MIN_SHARED + 10)
        engine.turn_idle()
        assert engine.loop.cells_cached >= ALL
        before = len(engine.steps)
        engine.post(run_message(2, "another", cache="b", max_tokens=4))
        engine.finish()
        cached = {step.cells_cached for step in engine.steps[before:-1]}
        assert cached == {0} if engine is loop else min(cached) >= ALL
        assert computed(engine, 3, PROMPT) == 1
        engine.close()


def test_the_next_turn_takes_over_the_cells_of_the_last(store: int) -> None:
    """If no other run came in between. Nothing is copied from the store."""
    loop = an_engine(store)
    computed(loop, 1, PROMPT, max_tokens=MIN_SHARED + 10)
    loop.turn_idle()
    assert loop.store is not None
    for entry in loop.store.entries:
        os.pwrite(store, b"damage", entry.offset + entry.tokens * 4 + 100)
    assert computed(loop, 2, PROMPT) == 1
    loop.close()


def test_the_first_token_comes_before_the_copy_that_is_due_near_a_prompt_s_end(store: int) -> None:
    """The client waits for the token, and for the copy nobody."""
    loop = an_engine(store)
    loop.model.prefill_row_ms = 20.0  # So that steps are short, and one ends after 256 tokens.
    assert loop.store is not None
    loop.post(run_message(1, PROMPT[: EVERY + LAST_ROWS // 2 - HEAD], cache="a", max_tokens=20))
    while not any(step.tokens for step in loop.steps):
        assert len(loop.store) == 0
        loop.turn()
    loop.turn()
    assert len(loop.store) == 1
    loop.finish()
    loop.close()


def test_a_prefix_that_is_damaged_is_reported_and_not_used(store: int) -> None:
    """By the engine that finds it: the prompt is computed, and there is a fault that is repaired."""
    loop = an_engine(store, exact=True)
    computed(loop, 1, PROMPT)
    loop.close()
    fresh = an_engine(store, exact=True)
    assert fresh.store is not None
    for entry in fresh.store.entries:
        os.pwrite(store, b"damage", entry.offset + entry.tokens * 4 + 100)
    fresh.post(run_message(1, PROMPT, cache="a", max_tokens=4))
    fresh.finish()
    assert sum(step.prompt_computed for step in fresh.steps) == ALL
    faults = [said for said in fresh.sent if isinstance(said, AuditFault)]
    assert faults
    assert all(fault.repaired and "damaged" in fault.message for fault in faults)
    fresh.close()


def test_the_front_learns_what_the_store_holds(store: int) -> None:
    """Whenever that changes."""
    loop = an_engine(store)
    computed(loop, 1, PROMPT)
    assert loop.store is not None
    reported = [said.bytes for said in loop.sent if isinstance(said, Stored)]
    assert reported[-1] == loop.store.used > 600 * 4
    loop.close()


def test_a_short_prompt_is_not_saved(store: int) -> None:
    """Computing it again is quicker than saving it."""
    loop = an_engine(store)
    assert HEAD < MIN_SHARED
    computed(loop, 1, "p" * (MIN_SHARED - HEAD), max_tokens=1)
    assert loop.store is not None
    assert len(loop.store) == 1
    computed(loop, 1, "q" * (MIN_SHARED - HEAD - 1), max_tokens=1)
    assert len(loop.store) == 1
    loop.close()
