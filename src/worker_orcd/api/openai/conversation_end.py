"""How the prompt of a conversation ends, with the field names of vLLM and `transformers`."""

import json

from pydantic import ConfigDict, Field

from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body


class ConversationEnd(Body):
    """Whether the prompt ends with the beginning of a new message (the default), or with the last message."""

    model_config = ConfigDict(extra="ignore")

    add_generation_prompt: bool | None = Field(
        default=None, description="`false`: the prompt ends with the last message"
    )
    continue_final_message: bool | None = Field(
        default=None, description="the output continues the last message"
    )

    def ended(self, prompt: str) -> str:
        """The prompt of a conversation with this end.

        Raises:
            JobError: `INVALID_REQUEST`: both fields are true.
        """
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "continue_final_message and add_generation_prompt cannot both be true",
                "continue_final_message",
            )
        if self.continue_final_message:
            return with_end(prompt, "open")
        return with_end(prompt, "closed") if self.add_generation_prompt is False else prompt


def with_end(prompt: str, end: str) -> str:
    """The prompt of a conversation with an `end` in its last message, for the engine's templates."""
    given = json.loads(prompt)
    messages = given if isinstance(given, list) else given["messages"]
    messages[-1]["end"] = end
    return json.dumps(given, ensure_ascii=False)
