"""Messages of a conversation, and the prompt that is made of them."""

import json
from typing import Literal

from pydantic import ConfigDict

from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body


class ContentPart(Body):
    """A part of a message. Text is all there is."""

    model_config = ConfigDict(extra="ignore")

    type: str = "text"
    text: str | None = None


class ChatMessage(Body):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None


def conversation(messages: list[ChatMessage], param: str) -> str:
    """Messages as a prompt that is a conversation.

    Raises:
        JobError: `INVALID_REQUEST`, a part of one is no text.
    """
    said = []
    for message in messages:
        content = message.content or ""
        if not isinstance(content, str):
            if any(part.text is None for part in content):
                raise invalid("only text is understood", param)
            content = "\n".join(part.text or "" for part in content)
        said.append({"role": "system" if message.role == "developer" else message.role, "content": content})
    return json.dumps(said, ensure_ascii=False)
