"""A client library for Python, driven line by line: `python clients.py NAME BASE_URL`, in an environment of its own.

Called by tests/clients/puppet.py, which describes the lines that are read and printed.
"""

import asyncio
import json
import runpy
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

MODEL = "scripted"


class Client(Protocol):
    """How a library asks for an answer. `headers` go with the request, `options` are the library's own."""

    async def whole(self, prompt: str, headers: dict[str, str], **options: Any) -> str:
        """The text of an answer that is not streamed."""

    async def stream(self, prompt: str, headers: dict[str, str], read: "Reader", **options: Any) -> None:
        """Read a streamed answer, and leave it as the library's users do once `read` has had enough."""


class Reader:
    """Collects the text of a stream."""

    def __init__(self, leave_after: int | None) -> None:
        self.text = ""
        self._left = leave_after

    def enough(self, text: str | None) -> bool:
        """Take a piece of text; whether it is time to leave."""
        self.text += text or ""
        if self._left is not None and text:
            self._left -= 1
        return self._left == 0


class OpenAI:
    """OpenAI's package."""

    def __init__(self, url: str) -> None:
        from openai import AsyncOpenAI

        self._client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")

    async def whole(self, prompt: str, headers: dict[str, str], **options: Any) -> str:
        answer = await self._client.chat.completions.create(**asked(prompt), extra_headers=headers)
        return answer.choices[0].message.content

    async def stream(self, prompt: str, headers: dict[str, str], read: Reader, **options: Any) -> None:
        asking = self._client.chat.completions.create(**asked(prompt), extra_headers=headers, stream=True)
        async with await asking as stream:
            async for chunk in stream:
                if read.enough(chunk.choices[0].delta.content):
                    break


class LangChain:
    """LangChain's chat model."""

    def __init__(self, url: str) -> None:
        from langchain_openai import ChatOpenAI

        # Without a time limit for each chunk: `asyncio.wait_for` of Python 3.11 loses a cancellation now and then.
        there = {"base_url": f"{url}/v1", "api_key": "none", "model": MODEL}
        self._model = ChatOpenAI(**there, stream_chunk_timeout=None)

    async def whole(self, prompt: str, headers: dict[str, str], **options: Any) -> str:
        return (await self._model.ainvoke(prompt, extra_headers=headers)).content

    async def stream(self, prompt: str, headers: dict[str, str], read: Reader, **options: Any) -> None:
        async with aclosing(self._model.astream(prompt, extra_headers=headers)) as stream:
            async for chunk in stream:
                if read.enough(chunk.content):
                    break


class PydanticAI:
    """An agent of Pydantic AI's."""

    def __init__(self, url: str) -> None:
        from pydantic_ai import Agent
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
        self._agent = Agent(OpenAIChatModel(MODEL, provider=provider))

    async def whole(self, prompt: str, headers: dict[str, str], **options: Any) -> str:
        return (await self._agent.run(prompt, model_settings={"extra_headers": headers})).output

    async def stream(self, prompt: str, headers: dict[str, str], read: Reader, **options: Any) -> None:
        async with self._agent.run_stream(prompt, model_settings={"extra_headers": headers}) as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                if read.enough(text):
                    await result.cancel()
                    break


class Agents:
    """An agent of OpenAI's Agents SDK."""

    def __init__(self, url: str) -> None:
        from agents import Agent, ModelSettings, Runner, set_default_openai_client, set_tracing_disabled
        from openai import AsyncOpenAI

        set_default_openai_client(AsyncOpenAI(base_url=f"{url}/v1", api_key="none"))
        set_tracing_disabled(True)
        self._runner = Runner
        self._agent = lambda headers: Agent(
            name="agent", model=MODEL, model_settings=ModelSettings(extra_headers=headers)
        )

    async def whole(self, prompt: str, headers: dict[str, str], **options: Any) -> str:
        return (await self._runner.run(self._agent(headers), prompt)).final_output

    async def stream(self, prompt: str, headers: dict[str, str], read: Reader, **options: Any) -> None:
        result = self._runner.run_streamed(self._agent(headers), prompt)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                if read.enough(event.data.delta):
                    result.cancel()


class Anthropic:
    """Anthropic's package."""

    def __init__(self, url: str) -> None:
        from anthropic import AsyncAnthropic

        self._client = AsyncAnthropic(base_url=url, api_key="none")

    async def whole(self, prompt: str, headers: dict[str, str], **options: Any) -> str:
        answer = await self._client.messages.create(**asked(prompt), max_tokens=1000, extra_headers=headers)
        return answer.content[0].text

    async def stream(self, prompt: str, headers: dict[str, str], read: Reader, **options: Any) -> None:
        asking = self._client.messages.stream(**asked(prompt), max_tokens=1000, extra_headers=headers)
        async with asking as stream:
            async for text in stream.text_stream:
                if read.enough(text):
                    break


class LiteLLM:
    """LiteLLM's library."""

    def __init__(self, url: str) -> None:
        import litellm

        self._more = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
        self._ask: Callable[..., Awaitable[Any]] = litellm.acompletion

    async def whole(self, prompt: str, headers: dict[str, str], **options: Any) -> str:
        answer = await self._ask(**{**asked(prompt), **self._more}, extra_headers=headers, **options)
        return answer.choices[0].message.content

    async def stream(self, prompt: str, headers: dict[str, str], read: Reader, **options: Any) -> None:
        asking = self._ask(**{**asked(prompt), **self._more}, extra_headers=headers, stream=True, **options)
        async with aclosing(await asking) as stream:
            async for chunk in stream:
                if read.enough(chunk.choices[0].delta.content):
                    break


class LiteLLMRouter(LiteLLM):
    """LiteLLM's router, with two groups of which the second is there for when the first fails."""

    def __init__(self, url: str) -> None:
        from litellm import Router

        super().__init__(url)
        deployments = [{"model_name": name, "litellm_params": self._more} for name in (MODEL, "other")]
        router = Router(model_list=deployments, fallbacks=[{MODEL: ["other"]}], num_retries=2)
        self._more = {"model": MODEL}
        self._ask = router.acompletion


CLIENTS: dict[str, Callable[[str], Client]] = {
    "openai": OpenAI,
    "langchain": LangChain,
    "pydantic-ai": PydanticAI,
    "agents": Agents,
    "anthropic": Anthropic,
    "litellm": LiteLLM,
    "litellm-router": LiteLLMRouter,
}


def asked(prompt: str) -> dict[str, Any]:
    """What OpenAI's and Anthropic's APIs call a question."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


def say(**outcome: Any) -> None:
    """Print a line, whatever an example has printed before."""
    print("\n" + json.dumps(outcome), flush=True)


async def ask(client: Client, order: dict[str, Any]) -> None:
    """Ask for an answer, and say how that went."""
    read = Reader(order.get("leave_after"))
    try:
        match order["call"]:
            case "run":
                await asyncio.to_thread(runpy.run_path, order["id"])
            case "stream":
                await client.stream(order["prompt"], order["headers"], read, **order["options"])
            case "whole":
                read.text = await client.whole(order["prompt"], order["headers"], **order["options"])
        say(call=order["id"], text=read.text)
    except asyncio.CancelledError:
        say(call=order["id"], raised="CancelledError")
    except Exception as error:  # noqa: BLE001  # Whatever it is, it is the outcome.
        say(call=order["id"], raised=type(error).__name__, message=str(error))


async def lines() -> AsyncIterator[dict[str, Any]]:
    """What is read."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield json.loads(line)


async def main(name: str, url: str) -> None:
    """Follow orders until the input ends."""
    client = CLIENTS[name](url)
    calls: dict[str, asyncio.Task[None]] = {}
    say(ready=name)
    async for order in lines():
        if "stop" in order:
            calls[order["stop"]].cancel()
        else:
            calls[order["id"]] = asyncio.create_task(ask(client, order))


asyncio.run(main(*sys.argv[1:]))
