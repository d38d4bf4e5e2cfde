"""A framework for Python: `python frameworks.py NAME BASE_URL WAY...`, in an environment of its own.

Prints one line of JSON with what came of each call. With the scripted engine: `whole`, `stream`, `tool` and
`tool_stream` (a tool is called, and its result sent back), `stopped` (by the framework's own means), `elsewhere`
(cancelled at the worker). With a model: `structured`, in all ways in which the framework asks for a structure.
"""

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Literal

from pydantic import BaseModel, Field

NAME, URL, *WAYS = sys.argv[1:]
HELLO = json.dumps({"text": "Hello 👋", "token_ms": 0})
SLOW = json.dumps({"token_ms": 20})
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
CALLS = json.dumps({"text": CALL, "token_ms": 0})
SUNNY = json.dumps({"text": "Sunny.", "token_ms": 0})
PIECES = 5
"""After so many pieces of text a stream is stopped."""
QUESTION = "Invent a person: name, city (Bern or Oslo), age."
called_with: list[str] = []


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    city: Literal["Bern", "Oslo"]
    age: int = Field(ge=0, le=99)


PERSON = json.dumps({"text": '{"name": "Ada", "city": "Bern", "age": 36}', "token_ms": 0})


def weather(city: str) -> str:
    """Forecast. What it returns is the script of the engine's next answer.

    Args:
        city: A city.
    """
    called_with.append(city)
    return SUNNY


def job(how: str) -> dict[str, str]:
    """The header that names the job of a call."""
    return {"X-Job-Id": f"{NAME}-{how}"}


def user(prompt: str) -> list[dict[str, str]]:
    """A conversation."""
    return [{"role": "user", "content": prompt}]


class Instructor:
    """instructor, over OpenAI's package: a mode for each way to ask for a structure."""

    def __init__(self) -> None:
        import instructor

        self._modes = instructor.Mode
        self._make = instructor.from_openai

    def _ask(self, mode: str, prompt: str, response: Any = Person, **more: Any) -> Any:
        from openai import AsyncOpenAI

        client = self._make(AsyncOpenAI(base_url=f"{URL}/v1", api_key="none"), mode=self._modes[mode])
        create = client.create_partial if more.get("stream") else client.create
        more = {"max_tokens": 200, "max_retries": 1, **more}
        return create(model="scripted", messages=user(prompt), response_model=response, **more)

    async def whole(self) -> str:
        return (await self._ask("JSON_SCHEMA", PERSON)).name

    async def stream(self) -> str:
        people = self._ask("JSON_SCHEMA", PERSON, stream=True)
        return [person async for person in people][-1].name

    async def tool(self) -> str:
        """Forced; the scripted engine writes what the schema allows."""
        called_with.append((await self._ask("TOOLS", PERSON)).city)
        return "Sunny."

    async def tool_stream(self) -> str:
        last = [person async for person in self._ask("TOOLS", PERSON, stream=True)][-1]
        called_with.append(last.city)
        return "Sunny."

    async def slow(self, headers: dict[str, str], enough: Callable[[], bool]) -> None:
        class Story(BaseModel):
            text: str

        # Text without end within the object.
        script = json.dumps({"text": '{"text": "' + "a" * 2000, "token_ms": 20})
        asking = self._ask("JSON_SCHEMA", script, Story, stream=True, max_tokens=2000, extra_headers=headers)
        async with aclosing(asking) as stream:
            async for _ in stream:
                if enough():
                    break

    async def structured(self) -> dict[str, Any]:
        """All modes that constrain the output. The others ask the model in words: the scripted one obeys."""
        modes = ("TOOLS", "TOOLS_STRICT", "FUNCTIONS", "JSON_SCHEMA", "JSON_O1", "RESPONSES_TOOLS")
        made = {mode: await self._ask(mode, QUESTION) for mode in modes}
        return {mode: person.model_dump() for mode, person in made.items()}


class LlamaIndex:
    """LlamaIndex, by its class for servers that are like OpenAI's."""

    def _model(self, **more: Any) -> Any:
        from llama_index.llms.openai_like import OpenAILike

        kinds = {
            "is_chat_model": True,
            "is_function_calling_model": True,
            "should_use_structured_outputs": True,
        }
        there = {"model": "scripted", "api_base": f"{URL}/v1", "api_key": "none", "timeout": 60}
        return OpenAILike(**there, **kinds, **more)

    def _said(self, prompt: str) -> list[Any]:
        from llama_index.core.llms import ChatMessage

        return [ChatMessage(role="user", content=prompt)]

    async def whole(self) -> str:
        return (await self._model().acomplete(HELLO)).text

    async def stream(self) -> str:
        chunks = await self._model().astream_chat(self._said(HELLO))
        return "".join([chunk.delta or "" async for chunk in chunks])

    async def tool(self, *, streaming: bool = False) -> str:
        from llama_index.core.agent.workflow import FunctionAgent

        agent = FunctionAgent(tools=[weather], llm=self._model(), streaming=streaming)
        return str(await agent.run(CALLS))

    async def tool_stream(self) -> str:
        return await self.tool(streaming=True)

    async def slow(self, headers: dict[str, str], enough: Callable[[], bool]) -> None:
        model = self._model(default_headers=headers)
        async with aclosing(await model.astream_chat(self._said(SLOW))) as stream:
            async for _ in stream:
                if enough():
                    break

    async def structured(self) -> dict[str, Any]:
        from llama_index.core.prompts import PromptTemplate

        template = PromptTemplate(QUESTION)
        made = {}
        for structured in (True, False):
            model = self._model(max_tokens=200)
            model.should_use_structured_outputs = structured
            made[str(structured)] = (await model.astructured_predict(Person, template)).model_dump()
        return made


class Haystack:
    """Haystack's generator and agent."""

    def _generator(self, **more: Any) -> Any:
        from haystack.components.generators.chat import OpenAIChatGenerator
        from haystack.utils import Secret

        there = {"api_key": Secret.from_token("none"), "model": "scripted", "api_base_url": f"{URL}/v1"}
        return OpenAIChatGenerator(**there, generation_kwargs=more)

    async def _run(self, prompt: str, *, streamed: bool = False, **more: Any) -> Any:
        from haystack.dataclasses import ChatMessage

        callback = {}
        if streamed:

            async def ignore(_chunk: Any) -> None:
                pass

            callback = {"streaming_callback": ignore}
        said = [ChatMessage.from_user(prompt)]
        return (await self._generator(**more).run_async(said, **callback))["replies"][0]

    async def whole(self) -> str:
        return (await self._run(HELLO)).text

    async def stream(self) -> str:
        return (await self._run(HELLO, streamed=True)).text

    async def tool(self, **more: Any) -> str:
        from haystack.components.agents import Agent
        from haystack.dataclasses import ChatMessage
        from haystack.tools import create_tool_from_function

        agent = Agent(chat_generator=self._generator(), tools=[create_tool_from_function(weather)])
        done = await agent.run_async([ChatMessage.from_user(CALLS)], **more)
        return done["last_message"].text

    async def tool_stream(self) -> str:
        async def ignore(_chunk: Any) -> None:
            pass

        return await self.tool(streaming_callback=ignore)

    async def slow(self, headers: dict[str, str], enough: Callable[[], bool]) -> None:
        """A callback cannot end the stream: its users cancel the task."""
        from haystack.dataclasses import ChatMessage

        task = asyncio.current_task()

        async def look(chunk: Any) -> None:
            if chunk.content and enough():
                task.cancel()

        said = [ChatMessage.from_user(SLOW)]
        with suppress(asyncio.CancelledError):
            await self._generator(extra_headers=headers).run_async(said, streaming_callback=look)

    async def structured(self) -> dict[str, Any]:
        asked = {"max_tokens": 200, "response_format": Person}
        return {"whole": json.loads((await self._run(QUESTION, **asked)).text)}


class Smolagents:
    """smolagents, which is not asynchronous."""

    def _model(self, **more: Any) -> Any:
        from smolagents import OpenAIModel

        return OpenAIModel(model_id="scripted", api_base=f"{URL}/v1", api_key="none", **more)

    async def whole(self) -> str:
        return self._model().generate(user(HELLO)).content

    async def stream(self) -> str:
        return "".join(delta.content or "" for delta in self._model().generate_stream(user(HELLO)))

    async def tool(self) -> str:
        """Without an agent: those write a system message and force each call."""
        from smolagents import tool

        more = {"tools_to_call_from": [tool(weather)], "tool_choice": "auto"}
        (call,) = self._model().generate(user(CALLS), **more).tool_calls
        weather(**json.loads(call.function.arguments))
        return "Sunny."

    async def tool_stream(self) -> str:
        from smolagents import agglomerate_stream_deltas, tool

        more = {"tools_to_call_from": [tool(weather)], "tool_choice": "auto"}
        made = agglomerate_stream_deltas(list(self._model().generate_stream(user(CALLS), **more)))
        (call,) = made.tool_calls
        weather(**json.loads(call.function.arguments))
        return "Sunny."

    async def slow(self, headers: dict[str, str], enough: Callable[[], bool]) -> None:
        def read() -> None:
            for delta in self._model(extra_headers=headers).generate_stream(user(SLOW)):
                if delta.content and enough():
                    break

        await asyncio.to_thread(read)

    async def structured(self) -> dict[str, Any]:
        """A step of each kind of agent: a forced call, and structured code."""
        from smolagents import CodeAgent, ToolCallingAgent, tool

        model = self._model(max_tokens=300)
        agent = ToolCallingAgent(tools=[tool(weather)], model=model, max_steps=1, verbosity_level=0)
        agent.run("How is the weather in Bern?", reset=True)
        form = {
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": Person.model_json_schema(), "strict": True},
        }
        made = model.generate(user(QUESTION), response_format=form)
        code = CodeAgent(
            tools=[], model=model, max_steps=1, use_structured_outputs_internally=True, verbosity_level=0
        )
        code.run("What is 2 + 2?")
        return {"generate": json.loads(made.content), "steps": len(agent.memory.steps) >= 2}


FRAMEWORKS = {
    "instructor": Instructor,
    "llama-index": LlamaIndex,
    "haystack": Haystack,
    "smolagents": Smolagents,
}


def cancel(name: str) -> None:
    """Cancel a job at the worker once it generates."""
    until, tokens = time.monotonic() + 60, 0
    while tokens < PIECES:
        if time.monotonic() > until:
            raise TimeoutError(f"{name} does not generate")
        time.sleep(0.01)
        with suppress(OSError), urllib.request.urlopen(f"{URL}/jobs/{name}") as answer:  # noqa: S310
            tokens = json.load(answer)["tokens_out"] or 0
    urllib.request.urlopen(f"{URL}/cancel", json.dumps({"job_id": name}).encode()).close()  # noqa: S310


async def outcome(asking: Awaitable[Any]) -> Any:
    """What came of a call."""
    called_with.clear()
    try:
        done = await asking
    except Exception as error:  # noqa: BLE001  # Whatever it is, it is the outcome.
        return {"raised": type(error).__name__, "message": str(error)[:500]}
    return {"text": done, "called_with": called_with.copy()} if called_with else done


async def stopped(framework: Any) -> None:
    """Stop a stream after a few pieces of its text."""
    pieces = iter(range(PIECES))
    await asyncio.create_task(framework.slow(job("stopped"), lambda: next(pieces, None) is None))


async def elsewhere(framework: Any) -> None:
    """Read a stream that is cancelled at the worker."""
    name = job("elsewhere")
    cancelling = asyncio.create_task(asyncio.to_thread(cancel, name["X-Job-Id"]))
    try:
        await framework.slow(name, lambda: False)
    finally:
        await cancelling


async def main() -> None:
    """Ask in each way."""
    framework = FRAMEWORKS[NAME]()
    others = {"stopped": stopped, "elsewhere": elsewhere}
    said = {
        way: await outcome(others[way](framework) if way in others else getattr(framework, way)())
        for way in WAYS
    }
    print("\n" + json.dumps(said), flush=True)


asyncio.run(main())
