"""Conversations rendered by published chat templates: what a turn has to compute (G13).

Templates drop the reasoning of earlier answers, rewrite the system prompt with today's date, or add to the last message
what is not there one turn later. So a turn's prompt often branches off from what the turn before left warm.
"""

from datetime import datetime
from itertools import takewhile

import pytest

from tests.chat_templates.conversations import FOLDER, VARIABLES, Conversation, said
from tests.fakes import HandLoop
from tests.loop_reports import run_of_tokens
from tests.unit.test_chat_template import rendered, template
from worker_orcd.engine.templates import template as module

CONTEXT = 60_000
ANSWER = 12
DAYS = [datetime(2026, 11, day) for day in (25, 25, 26)]  # noqa: DTZ001  # As templates see it, without a zone.
WITHOUT_SYSTEM = {"google-gemma-2-2b-it"}
"""These refuse a system prompt."""
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if path.stem not in {*VARIABLES, *WITHOUT_SYSTEM})


def turns(*, reasons: bool) -> list[Conversation]:
    """Three requests of one conversation; the client sends the answers back as it got them."""
    conversation = [said("system", "You are terse. " * 20), said("user", "How far is the moon? " * 10)]
    asked = [conversation]
    for n in range(2):
        answer = f"Answer {n}. " * 8
        if reasons:
            answer = f"<think>\nLet me see {n}.\n</think>\n\n{answer}"
        conversation = [*conversation, said("assistant", answer), said("user", f"And {n}? " * 10)]
        asked.append(conversation)
    return asked


def in_common(prompt: tuple[int, ...], earlier: tuple[int, ...]) -> int:
    """With how many of the same tokens both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, earlier, strict=False)))


@pytest.mark.parametrize("reasons", [False, True], ids=["plain", "reasoning"])
@pytest.mark.parametrize("name", NAMES)
def test_a_turn_computes_what_differs_from_all_turns_before(
    name: str, reasons: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last token that it has in common with any of them, and its last one: not one token more."""
    today = DAYS[0]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return today

    monkeypatch.setattr(module, "datetime", Clock)
    it = template((FOLDER / f"{name}.jinja").read_text("utf-8"))
    loop = HandLoop(parallel=2, cells=CONTEXT)
    known: list[tuple[int, ...]] = []
    for number, conversation in enumerate(turns(reasons=reasons), 1):
        today = DAYS[number - 1]
        prompt = tuple(rendered(it, conversation).encode())
        loop.post(run_of_tokens(number, prompt, max_tokens=ANSWER, cache="key"))
        before = len(loop.steps)
        loop.finish()
        computed = sum(step.prompt_computed for step in loop.steps[before:])
        shared = max((in_common(prompt, earlier) for earlier in known), default=0)
        assert computed == len(prompt) - min(shared, len(prompt) - 1)
        known.append((*prompt, *loop.tokens(number)[:-1]))
    loop.close()
