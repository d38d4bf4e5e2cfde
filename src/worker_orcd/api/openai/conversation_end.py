"""How the prompt of a conversation ends, in the words of vLLM and `transformers`."""

import json

from pydantic import ConfigDict, Field

from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body


class ConversationEnd(Body):
    """Whether the prompt ends with the beginning of a new answer, as it does unless a request says otherwise."""

    model_config = ConfigDict(extra="ignore")

    add_generation_prompt: bool | None = Field(
        default=None, description="`false`: the prompt ends with the last message"
    )
    continue_final_message: bool | None = Field(
        default=None, description="the output continues the last message, which is left open"
    )

    def ended(self, prompt: str) -> str:
        """A conversation's prompt with this end.

        Raises:
            JobError: `INVALID_REQUEST`, a new answer and the last message cannot both be begun.
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
    """A conversation's prompt whose last message says how it ends, as the engine's templates read it."""
    given = json.loads(prompt)
    messages = given if isinstance(given, list) else given["messages"]
    messages[-1]["end"] = end
    return json.dumps(given, ensure_ascii=False)
