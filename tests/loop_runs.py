"""Runs of a loop that a test turns by hand: their scripts, and turning until they decode."""

import json
from typing import Any

from tests.fakes import HandLoop, MakeLoop, run_message

LONG = "x" * 400


def generates(text: str, **more: object) -> str:
    """A script that generates this text, one byte per token."""
    return json.dumps({"text": text, "token_ms": 0, "row_ms": 0, **more})


def alone(make_loop: MakeLoop, run: int, prompt: str = "", **given: Any) -> list[int]:
    """The tokens of a run that is alone in the engine."""
    it = make_loop()
    it.post(run_message(run, prompt, **given))
    it.finish()
    return it.tokens(run)


def in_decode(it: HandLoop, *runs: int) -> None:
    """Turn until each of these runs has generated a token."""
    for _ in range(200):
        if all(it.tokens(run) for run in runs):
            return
        it.turn()
    raise AssertionError("they generate no token")


def interrupted_step(it: HandLoop) -> None:
    """One turn whose step the byte aborts, if it is abortable."""
    it.model.during_step = it.byte.set
    it.turn()
    it.model.during_step = lambda: None
