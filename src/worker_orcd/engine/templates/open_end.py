"""Conversations that do not end with the beginning of a new answer: their last message says how they end.

`transformers` and vLLM call this `continue_final_message` and `add_generation_prompt`. The last message is followed by
a mark before rendering, and what the template writes from the mark on is cut away.
"""

from typing import Any, Literal

End = Literal["open", "closed"]
"""`end` of the last message: `open`, the answer continues it; `closed`, nothing follows it. Left out: a new message."""
_MARK = "CONTINUES-HERE-7c1e0f52a94b "
"""Its space shows whether the template keeps white space at the end of a message."""


class NotShown(Exception):
    """The template does not show the last message."""


def prepared(variables: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The variables for the template, and whether `cut` has to look for the end of the last message."""
    messages = variables.get("messages")
    last = messages[-1] if messages else {}
    end: End | None = last.get("end")
    if not messages or end is None:
        return variables, False
    last = {name: value for name, value in last.items() if name != "end"}
    if end == "open":
        last["content"] += _MARK
    return {
        **variables,
        "messages": [*messages[:-1], last],
        "add_generation_prompt": False,
    }, end == "open"


def cut(text: str) -> int:
    """Where the last message ends in a rendered conversation.

    Raises:
        NotShown: it is not there.
    """
    place = text.rfind(_MARK.rstrip())
    if place < 0:
        raise NotShown
    if text.startswith(_MARK, place):
        return place
    return len(text[:place].rstrip())
