"""A structure by way of a client library: `python structures.py NAME BASE_URL PROMPT`, in an environment of its own.

Prints one line of JSON with what came of each way in which the library asks for a person, whole and streamed. With
`cancelled` instead of a prompt: of a stream that is cancelled at the worker while the structure is generated.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel
from shared import Person, cancel

NAME, URL, PROMPT = sys.argv[1:]
STORY = json.dumps({"text": '{"text": "' + "a" * 3000, "token_ms": 20})
"""Text without end within the object."""
JOB = {"X-Job-Id": f"{NAME}-structure"}
TOKENS = 20
"""So many of them are generated when a structure is cancelled."""
LIMIT = 300
"""So many tokens at most, for a model that does not come to an end."""


class Story(BaseModel):
    """A story."""

    text: str


Ask = Callable[[], Awaitable[Any]]


def pydantic_ai() -> dict[str, Ask]:
    """Pydantic AI's three output modes."""
    from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
    model = OpenAIChatModel("scripted", provider=provider)
    modes = {"tool": ToolOutput, "native": NativeOutput, "prompted": PromptedOutput}

    def asks(mode: Any) -> tuple[Ask, Ask]:
        agent = Agent(model, output_type=mode(Person), model_settings={"max_tokens": LIMIT})

        async def whole() -> Any:
            return (await agent.run(PROMPT)).output

        async def stream() -> Any:
            async with agent.run_stream(PROMPT) as result:
                return [person async for person in result.stream_output(debounce_by=None)][-1]

        return whole, stream

    async def cancelled() -> Any:
        agent = Agent(model, output_type=NativeOutput(Story), model_settings={"extra_headers": JOB})
        async with agent.run_stream(STORY) as result:
            return [story async for story in result.stream_output(debounce_by=None)][-1]

    return ways({name: asks(mode) for name, mode in modes.items()}, cancelled)


def langchain() -> dict[str, Ask]:
    """LangChain's three methods of `with_structured_output`."""
    from langchain_openai import ChatOpenAI

    there = {"base_url": f"{URL}/v1", "api_key": "none", "model": "scripted", "stream_chunk_timeout": None}
    model = ChatOpenAI(**there, max_tokens=LIMIT)

    def asks(method: str) -> tuple[Ask, Ask]:
        structured = model.with_structured_output(Person, method=method)

        async def whole() -> Any:
            return await structured.ainvoke(PROMPT)

        async def stream() -> Any:
            return [person async for person in structured.astream(PROMPT)][-1]

        return whole, stream

    async def cancelled() -> Any:
        """With the library's own retries, which send the same request again."""
        stories = ChatOpenAI(**there, default_headers=JOB).with_structured_output(Story).with_retry()
        return await stories.ainvoke(STORY)

    methods = ("json_schema", "function_calling", "json_mode")
    return ways({method: asks(method) for method in methods}, cancelled)


def agents() -> dict[str, Ask]:
    """The output type of an agent of OpenAI's Agents SDK, over both APIs."""
    from agents import (
        Agent,
        ModelSettings,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="none")
    apis = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}

    def asks(api: Any) -> tuple[Ask, Ask]:
        settings = ModelSettings(max_tokens=LIMIT)
        there = api(model="scripted", openai_client=client)
        agent = Agent(name="agent", model=there, output_type=Person, model_settings=settings)

        async def whole() -> Any:
            return (await Runner.run(agent, PROMPT)).final_output

        async def stream() -> Any:
            result = Runner.run_streamed(agent, PROMPT)
            async for _ in result.stream_events():
                pass
            return result.final_output

        return whole, stream

    async def cancelled() -> Any:
        there = OpenAIChatCompletionsModel(model="scripted", openai_client=client)
        settings = ModelSettings(extra_headers=JOB)
        agent = Agent(name="agent", model=there, output_type=Story, model_settings=settings)
        result = Runner.run_streamed(agent, STORY)
        async for _ in result.stream_events():
            pass
        return result.final_output

    return ways({name: asks(api) for name, api in apis.items()}, cancelled)


def litellm() -> dict[str, Ask]:
    """LiteLLM's library: a response format, and a forced call."""
    import litellm as library

    there = {"model": "openai/scripted", "api_base": f"{URL}/v1", "api_key": "none", "max_tokens": LIMIT}
    tool = {"type": "function", "function": {"name": "person", "parameters": Person.model_json_schema()}}
    ways_to_ask = {
        "format": {"response_format": Person},
        "tool": {"tools": [tool], "tool_choice": "required"},
    }

    def asks(more: Any) -> tuple[Ask, Ask]:
        asked = {**there, "messages": [{"role": "user", "content": PROMPT}], **more}

        def person(answer: Any) -> Any:
            message = answer.choices[0].message
            text = message.tool_calls[0].function.arguments if message.tool_calls else message.content
            return Person.model_validate_json(text)

        async def whole() -> Any:
            return person(await library.acompletion(**asked))

        async def stream() -> Any:
            chunks = [chunk async for chunk in await library.acompletion(**asked, stream=True)]
            return person(library.stream_chunk_builder(chunks))

        return whole, stream

    async def cancelled() -> Any:
        asked = [{"role": "user", "content": STORY}]
        more = {"messages": asked, "response_format": Story, "extra_headers": JOB, "max_tokens": None}
        chunks = await library.acompletion(**{**there, **more}, stream=True)
        return [chunk async for chunk in chunks][-1]

    return ways({name: asks(more) for name, more in ways_to_ask.items()}, cancelled)


LIBRARIES = {"pydantic-ai": pydantic_ai, "langchain": langchain, "agents": agents, "litellm": litellm}


def ways(asks: dict[str, tuple[Ask, Ask]], cancelled: Ask) -> dict[str, Ask]:
    """By their names."""
    if PROMPT == "cancelled":
        return {"cancelled": cancelled}
    return {
        f"{name}{how}": ask
        for name, both in asks.items()
        for how, ask in zip(("", " streamed"), both, strict=True)
    }


async def outcome(ask: Ask) -> Any:
    """What came of a call."""
    try:
        made = await ask()
    except Exception as error:  # noqa: BLE001  # Whatever it is, it is the outcome.
        return {"raised": type(error).__name__, "message": str(error)[:300]}
    return made.model_dump() if isinstance(made, BaseModel) else made


async def main() -> None:
    """Ask in each way."""
    cancelling = None
    if PROMPT == "cancelled":
        cancelling = asyncio.create_task(asyncio.to_thread(cancel, URL, JOB["X-Job-Id"], TOKENS))
    said = {way: await outcome(ask) for way, ask in LIBRARIES[NAME]().items()}
    if cancelling:
        await cancelling
    print("\n" + json.dumps(said), flush=True)


asyncio.run(main())
