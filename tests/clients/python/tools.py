"""A tool called by way of a client library: `python tools.py NAME BASE_URL [forced]`, in an environment of its own.

Prints one line of JSON: for `whole`, `stream` and `cancelled` (a stream that is cancelled at the worker in the middle
of the call) the answer's text, or what was raised, and what the tool was called with. For `forced`, with the Agents SDK
only: of a call that the model has to make, and its answer to the result.
"""

import asyncio
import json
import sys
from typing import Any, Literal

from shared import cancel

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}'
ANSWER = json.dumps({"text": "Sunny.", "token_ms": 0})
JOB = f"called-{sys.argv[1]}"
"""Of this library: a request with the id of a job that was cancelled a moment ago counts as its retry."""
called_with: list[str] = []


def weather(city: Literal["Bern", "Oslo"]) -> str:
    """Forecast. What it returns is the script of the engine's next answer."""
    called_with.append(city)
    return ANSWER


async def pydantic_ai(url: str, how: str, prompt: str, more: dict[str, Any]) -> str:
    """An agent of Pydantic AI's."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    agent = Agent(OpenAIChatModel("scripted", provider=provider), tools=[weather])
    if how == "whole":
        return (await agent.run(prompt)).output
    async with agent.run_stream(prompt, model_settings=more) as result:
        return "".join([text async for text in result.stream_text(delta=True)])


async def agents(url: str, how: str, prompt: str, more: dict[str, Any], api: str = "chat_completions") -> str:
    """An agent of OpenAI's Agents SDK, over chat completions or responses."""
    from agents import (
        Agent,
        ModelSettings,
        Runner,
        function_tool,
        set_default_openai_api,
        set_default_openai_client,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    set_default_openai_client(AsyncOpenAI(base_url=f"{url}/v1", api_key="none"))
    set_default_openai_api(api)
    set_tracing_disabled(True)
    tools = [function_tool(weather)]
    agent = Agent(name="agent", model="scripted", tools=tools, model_settings=ModelSettings(**more))
    if how == "whole":
        return (await Runner.run(agent, prompt)).final_output
    result = Runner.run_streamed(agent, prompt)
    async for _ in result.stream_events():
        pass
    return result.final_output


async def agents_responses(url: str, how: str, prompt: str, more: dict[str, Any]) -> str:
    """The same over responses, which is what the SDK does by itself."""
    return await agents(url, how, prompt, more, "responses")


async def anthropic(url: str, how: str, prompt: str, more: dict[str, Any]) -> str:
    """Anthropic's package, whose tool runner asks until no tool is called."""
    from anthropic import AsyncAnthropic, beta_async_tool

    @beta_async_tool(name="weather")
    async def tool(city: str) -> str:
        """Forecast."""
        return weather(city)

    client = AsyncAnthropic(base_url=url, api_key="none")
    said = {"model": "scripted", "max_tokens": 1000, "messages": [{"role": "user", "content": prompt}]}
    runner = client.beta.messages.tool_runner(**said, tools=[tool], stream=how != "whole", **more)
    async for answer in runner:
        last = answer if how == "whole" else await answer.get_final_message()
    return last.content[0].text


async def langchain(url: str, how: str, prompt: str, more: dict[str, Any]) -> str:
    """LangChain's chat model, whose users run the tool."""
    from langchain_openai import ChatOpenAI

    there = {"base_url": f"{url}/v1", "api_key": "none", "model": "scripted", "stream_chunk_timeout": None}
    model = ChatOpenAI(**there).bind_tools([weather])
    if how == "whole":
        answer = await model.ainvoke(prompt)
    else:
        pieces = [piece async for piece in model.astream(prompt, **more)]
        answer = sum(pieces[1:], pieces[0])
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": weather(**call["args"])}
        for call in answer.tool_calls
    ]
    return (await model.ainvoke([{"role": "user", "content": prompt}, answer, *results])).content


LIBRARIES = {
    "pydantic-ai": pydantic_ai,
    "agents": agents,
    "agents-responses": agents_responses,
    "anthropic": anthropic,
    "langchain": langchain,
}


async def ask(name: str, how: str, url: str) -> dict[str, Any]:
    """Ask once."""
    called_with.clear()
    said: dict[str, Any] = {}
    text, more = f"{CALL}\n</tool_call>", {}
    if how == "cancelled":
        # The output goes on behind the script, without text.
        text, more = CALL, {"extra_body": {"ignore_eos": True}, "extra_headers": {"X-Job-Id": JOB}}
    cancelling = asyncio.create_task(asyncio.to_thread(cancel, url, JOB, len(CALL) + 1)) if more else None
    try:
        prompt = json.dumps({"text": text, "token_ms": 5 if more else 0})
        said["text"] = await LIBRARIES[name](url, how, prompt, more)
    except Exception as error:  # noqa: BLE001  # Whatever it is, it is the outcome.
        said["raised"] = type(error).__name__
    if cancelling:
        await cancelling
    return {**said, "called_with": called_with.copy()}


async def forced(name: str, url: str) -> dict[str, Any]:
    """Have a model call the tool."""
    more = {"tool_choice": "required", "max_tokens": 200}
    text = await LIBRARIES[name](url, "whole", "How is the weather in Bern?", more)
    return {"text": text, "called_with": called_with}


async def main(name: str, url: str, only: str = "") -> None:
    """Ask in each way."""
    if only:
        print("\n" + json.dumps({only: await forced(name, url)}), flush=True)
        return
    said = {how: await ask(name, how, url) for how in ("whole", "stream", "cancelled")}
    print("\n" + json.dumps(said), flush=True)


asyncio.run(main(*sys.argv[1:]))
