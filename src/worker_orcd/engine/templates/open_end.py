"""Conversations that end with their last message, instead of the beginning of a new answer.

`transformers` and vLLM call this `continue_final_message` and `add_generation_prompt`. A mark is appended to the last
message before rendering, and the rendered text is cut at the mark.
"""

from typing import Any, Literal

End = Literal["open", "closed"]
"""`end` of the last message. `open`: the answer continues the message. `closed`: nothing follows the message. Without
`end`, the answer is a new message."""
_MARK = "CONTINUES-HERE-7c1e0f52a94b "
"""The mark's space shows whether the template keeps white space at the end of a message."""


class NotShown(Exception):
    """The template does not show the last message."""


def prepared(variables: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The variables for the template, and whether the rendered text must be cut at the end of the last message."""
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
    """The position where the last message ends in a rendered conversation.

    Raises:
        NotShown: the text does not contain the last message.
    """
    place = text.rfind(_MARK.rstrip())
    if place < 0:
        raise NotShown
    if text.startswith(_MARK, place):
        return place
    return len(text[:place].rstrip())
