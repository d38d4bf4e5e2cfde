"""A framework for Python: `python frameworks.py NAME BASE_URL WAY...`, in an environment of its own.

Prints one line of JSON with what came of each call. With the scripted engine: `whole`, `stream`, `tool` and
`tool_stream` (a tool is called, and its result sent back); `stopped` and `elsewhere`, a stream that is stopped by the
framework's own means and one that is cancelled at the worker; `whole_stopped` and `whole_elsewhere`, the same for an
answer that is not streamed; `modes`, all ways in which instructor or DSPy asks for a structure. With a model:
`structured`, in all ways in which the framework asks for a structure.
"""

import asyncio
import json
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from typing import Any, ClassVar

from pydantic import BaseModel
from shared import Person, cancel, generated

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


class Place(BaseModel):
    """A place."""

    city: str


PERSON = json.dumps({"text": '{"name": "Ada", "city": "Bern", "age": 36}', "token_ms": 0})

TWO_CALLS = json.dumps(
    {
        "text": '<tool_call>\n{"name": "Place", "arguments": {"city": "Bern"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "Person", "arguments": {"name": "Ada", "city": "Oslo", "age": 36}}\n</tool_call>',
        "token_ms": 0,
    }
)
DSPY_HELLO = json.dumps({"text": "[[ ## answer ## ]]\nHello 👋\n\n[[ ## completed ## ]]", "token_ms": 0})
DSPY_SLOW = json.dumps({"text": "[[ ## answer ## ]]\n" + "word " * 60, "token_ms": 40})
MODES = (
    *("TOOLS", "TOOLS_STRICT", "FUNCTIONS", "JSON", "JSON_O1", "JSON_SCHEMA", "MD_JSON"),
    *("RESPONSES_TOOLS", "RESPONSES_TOOLS_WITH_INBUILT_TOOLS"),
)


def weather(city: str) -> str:
    """Forecast. What it returns is the script of the engine's next answer.

    Args:
        city: A city.
    """
    called_with.append(city)
    return SUNNY


def says(text: str) -> str:
    """The script of this output."""
    return json.dumps({"text": text, "token_ms": 0})


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

        warnings.simplefilter("ignore", DeprecationWarning)  # FUNCTIONS
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

    async def slow_whole(self, headers: dict[str, str], *, stopping: bool) -> None:
        await self._ask("JSON_SCHEMA", SLOW, Person, max_tokens=2000, extra_headers=headers)

    async def modes(self) -> dict[str, Any]:
        """All modes, whole and streamed. The scripted engine obeys those, too, that ask for a structure in words."""
        seen: dict[str, Any] = {}
        for mode in MODES:
            seen[mode] = await outcome(self._ask(mode, PERSON))
            streamed = self._ask(mode, PERSON, stream=True)
            seen[f"{mode} streamed"] = await outcome(last_of(streamed))
        people = await self._ask("PARALLEL_TOOLS", TWO_CALLS, Iterable[Person | Place])
        seen["PARALLEL_TOOLS"] = [one.model_dump() for one in people]
        return seen

    async def structured(self) -> dict[str, Any]:
        """All modes that constrain the output. The others ask the model in words: the scripted one obeys."""
        modes = ("TOOLS", "TOOLS_STRICT", "FUNCTIONS", "JSON_SCHEMA", "JSON_O1", "RESPONSES_TOOLS")
        made = {mode: await self._ask(mode, QUESTION) for mode in modes}
        return {mode: person.model_dump() for mode, person in made.items()}


async def last_of(people: Any) -> Any:
    """The last of a stream's states."""
    return [person async for person in people][-1]


class LlamaIndex:
    """LlamaIndex, by its class for servers that are like OpenAI's."""

    def _model(self, **more: Any) -> Any:
        from llama_index.llms.openai_like import OpenAILike

        kinds = {
            "is_chat_model": True,
            "is_function_calling_model": True,
            "should_use_structured_outputs": True,
        }
        there = {"model": "scripted", "api_base": f"{URL}/v1", "api_key": "none", "timeout": 600}
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

    async def slow_whole(self, headers: dict[str, str], *, stopping: bool) -> None:
        await self._model(default_headers=headers).achat(self._said(SLOW))

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

    async def slow_whole(self, headers: dict[str, str], *, stopping: bool) -> None:
        await self._run(SLOW, extra_headers=headers)

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

    async def slow_whole(self, headers: dict[str, str], *, stopping: bool) -> None:
        """Its users cannot stop it, except by a time limit."""
        limit = {"client_kwargs": {"timeout": 2.0, "max_retries": 0}} if stopping else {}
        await asyncio.to_thread(self._model(extra_headers=headers, **limit).generate, user(SLOW))

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


class SmolagentsAgent(Smolagents):
    """An agent of smolagents, each of whose steps is a request. Its class says how the model writes a step."""

    agent: str
    answer_of: Callable[[Any, str], str]
    """The model's output that ends with this answer."""
    call: str
    """The model's output that asks for the weather."""

    def _agent(self, *, streamed: bool, **more: Any) -> Any:
        import smolagents

        class ScriptFirst(smolagents.OpenAIModel):
            """The agents write words before what a user or a tool says; the scripted engine needs its script first."""

            def _prepare_completion_kwargs(self, *given: Any, **more: Any) -> Any:
                asked = super()._prepare_completion_kwargs(*given, **more)
                last = asked["messages"][-1]
                text = "".join(part["text"] for part in last["content"])
                asked["messages"][-1] = {**last, "content": text[max(text.find("{"), 0) :]}
                return asked

        class Weather(smolagents.Tool):
            name = "weather"
            description = "Forecast. What it returns is the script of the engine's next answer."
            inputs: ClassVar = {"city": {"type": "string", "description": "A city."}}
            output_type = "string"

            def forward(tool, city: str) -> str:  # noqa: N805
                called_with.append(city)
                return says(self.answer_of("Sunny."))

        model = ScriptFirst(model_id="scripted", api_base=f"{URL}/v1", api_key="none", **more)
        kind = getattr(smolagents, self.agent)
        agent = kind(tools=[Weather()], model=model, verbosity_level=0, stream_outputs=streamed)
        agent.prompt_templates["system_prompt"] = (
            "Help."  # Theirs has more bytes than the scripted engine's context.
        )
        return agent

    async def _run(self, output: str) -> str:
        agent = self._agent(streamed=False)
        answer = await asyncio.to_thread(agent.run, says(output))
        self.check(agent)
        return answer

    async def _read(self, output: str) -> str:
        from smolagents import ChatMessageStreamDelta

        agent = self._agent(streamed=True)
        *steps, last = await asyncio.to_thread(list, agent.run(says(output), stream=True))
        if not any(isinstance(step, ChatMessageStreamDelta) for step in steps):
            raise ValueError("nothing was streamed")
        self.check(agent)
        return last.output

    def check(self, agent: Any) -> None:
        """Check what an agent got from the worker."""

    async def whole(self) -> str:
        return await self._run(self.answer_of("Hello 👋"))

    async def stream(self) -> str:
        return await self._read(self.answer_of("Hello 👋"))

    async def tool(self) -> str:
        return await self._run(self.call)

    async def tool_stream(self) -> str:
        return await self._read(self.call)

    async def slow(self, headers: dict[str, str], enough: Callable[[], bool]) -> None:
        from smolagents import ChatMessageStreamDelta

        def read() -> None:
            for step in self._agent(streamed=True, extra_headers=headers).run(SLOW, stream=True):
                if isinstance(step, ChatMessageStreamDelta) and enough():
                    break

        await asyncio.to_thread(read)

    async def slow_whole(self, headers: dict[str, str], *, stopping: bool) -> None:
        """Its users cannot stop it during a step, except by a time limit."""
        limit = {"client_kwargs": {"timeout": 2.0, "max_retries": 0}} if stopping else {}
        agent = self._agent(streamed=False, extra_headers=headers, **limit)
        await asyncio.to_thread(agent.run, SLOW)


class SmolagentsCode(SmolagentsAgent):
    """Its steps are programs, which it runs."""

    agent = "CodeAgent"
    call = '<code>\nprint(weather(city="Bern"))\n</code>'

    def answer_of(self, answer: str) -> str:
        return f'<code>\nfinal_answer("{answer}")\n</code>'


class SmolagentsTools(SmolagentsAgent):
    """Its steps are forced tool calls. The answer is one, too."""

    agent = "ToolCallingAgent"
    call = '{"name": "weather", "arguments": {"city": "Bern"}}'

    def check(self, agent: Any) -> None:
        """It would find a call in a text, too."""
        texts = [step.model_output for step in agent.memory.steps if getattr(step, "model_output", None)]
        if texts:
            raise ValueError(f"calls came as text: {texts}")

    def answer_of(self, answer: str) -> str:
        call = {"name": "final_answer", "arguments": {"answer": answer}}
        return json.dumps(call, ensure_ascii=False)  # Constrained strings have no escaped surrogates.


class DSPy:
    """DSPy, by its own client for a server that is declared as a provider. Its adapters are the usual ones, except that
    with the scripted engine the question comes first."""

    def __init__(self) -> None:
        import dspy
        from dspy.lm15 import (
            AccessPolicy,
            ModelSupport,
            OpenAIChatCompat,
            ProviderDefinition,
            register_provider,
        )

        access = AccessPolicy(provider="worker", base_url=f"{URL}/v1", env_keys=("WORKER_KEY",))
        server = ProviderDefinition.chat(access, compat=OpenAIChatCompat.preset("vllm"))
        register_provider(server, supports=ModelSupport(function_calling=True, response_schema=True))
        self._dspy = dspy

    def _context(self, adapter: str = "ChatAdapter", **more: Any) -> Any:
        class ScriptFirst:
            def format_user_message_content(
                self, signature: Any, inputs: Any, prefix: str = "", *rest: Any, **more: Any
            ) -> Any:
                first = prefix + str(inputs.get("question", ""))
                return super().format_user_message_content(signature, inputs, first, *rest, **more)

        # Its listeners know adapters by their class's name.
        usual = getattr(self._dspy, adapter)
        made = type(adapter, (ScriptFirst, usual), {})
        lm = self._dspy.LM("worker/scripted", api_key="none", cache=False, **more)
        return self._dspy.context(lm=lm, adapter=made(use_native_function_calling=True))

    async def whole(self) -> str:
        with self._context():
            return (await self._dspy.Predict("question -> answer").acall(question=DSPY_HELLO)).answer

    async def _stream(self, question: str) -> Any:
        from dspy.streaming import StreamListener

        predict = self._dspy.Predict("question -> answer")
        read = self._dspy.streamify(predict, stream_listeners=[StreamListener("answer")])
        async for piece in read(question=question):
            yield piece

    async def stream(self) -> str:
        with self._context():
            *pieces, done = [piece async for piece in self._stream(DSPY_HELLO)]
        if not pieces:
            raise ValueError("nothing was streamed")
        return done.answer

    async def tool(self) -> str:
        """Its users run the tool."""
        dspy = self._dspy

        class Tools(dspy.Signature):
            question: str = dspy.InputField()
            tools: list[dspy.Tool] = dspy.InputField()
            calls: dspy.ToolCalls = dspy.OutputField()

        tool = dspy.Tool(weather)
        with self._context():
            done = await dspy.Predict(Tools).acall(question=CALLS, tools=[tool])
        (call,) = done.calls.tool_calls
        call.execute(functions=[tool])
        return "Sunny."

    tool_stream = tool
    """Its streams have the text of fields, not calls."""

    async def slow(self, headers: dict[str, str], enough: Callable[[], bool]) -> None:
        """Closing a stream is not enough, and breaks its task group: its users cancel the task."""
        task = asyncio.current_task()
        with suppress(asyncio.CancelledError), self._context(extra_headers=headers):
            async for _ in self._stream(DSPY_SLOW):
                if enough():
                    task.cancel()

    async def modes(self) -> dict[str, Any]:
        """By the adapter that has the server constrain the output, and by the usual one."""
        dspy = self._dspy

        class Invent(dspy.Signature):
            """Invent a person."""

            question: str = dspy.InputField()
            person: Person = dspy.OutputField()

        person = json.loads(PERSON)["text"]
        texts = {
            "JSONAdapter": f'{{"person": {person}}}',
            "ChatAdapter": f"[[ ## person ## ]]\n{person}\n\n[[ ## completed ## ]]",
        }
        seen = {}
        for adapter, text in texts.items():
            with self._context(adapter):
                question = json.dumps({"text": text, "token_ms": 0})
                seen[adapter] = (await dspy.Predict(Invent).acall(question=question)).person.model_dump()
        return seen

    async def structured(self) -> dict[str, Any]:
        """By the adapter that has the server constrain the output."""
        dspy = self._dspy

        class Invent(dspy.Signature):
            """Invent a person."""

            question: str = dspy.InputField()
            person: Person = dspy.OutputField()

        with self._context("JSONAdapter", max_tokens=300):
            return {"whole": (await dspy.Predict(Invent).acall(question=QUESTION)).person.model_dump()}

    async def slow_whole(self, headers: dict[str, str], *, stopping: bool) -> None:
        with self._context(extra_headers=headers):
            await self._dspy.Predict("question -> answer").acall(question=DSPY_SLOW)


FRAMEWORKS = {
    "instructor": Instructor,
    "llama-index": LlamaIndex,
    "haystack": Haystack,
    "smolagents": Smolagents,
    "smolagents-code": SmolagentsCode,
    "smolagents-tools": SmolagentsTools,
    "dspy": DSPy,
}


async def outcome(asking: Awaitable[Any]) -> Any:
    """What came of a call."""
    called_with.clear()
    try:
        done = await asking
    except Exception as error:  # noqa: BLE001  # Whatever it is, it is the outcome.
        return {"raised": type(error).__name__, "message": str(error)[:500]}
    if isinstance(done, BaseModel):
        return done.model_dump()
    return {"text": done, "called_with": called_with.copy()} if called_with else done


async def stopped(framework: Any) -> None:
    """Stop a stream after a few pieces of its text."""
    pieces = iter(range(PIECES))
    await asyncio.create_task(framework.slow(job("stopped"), lambda: next(pieces, None) is None))


async def elsewhere(framework: Any) -> None:
    """Read a stream that is cancelled at the worker."""
    name = job("elsewhere")
    cancelling = asyncio.create_task(asyncio.to_thread(cancel, URL, name["X-Job-Id"], PIECES))
    try:
        await framework.slow(name, lambda: False)
    finally:
        await cancelling


async def whole_stopped(framework: Any) -> None:
    """Stop an answer that is not streamed."""
    name = job("whole_stopped")
    asking = asyncio.create_task(framework.slow_whole(name, stopping=True))
    if not NAME.startswith("smolagents"):  # It has a time limit instead, whatever was generated by then.
        await asyncio.to_thread(generated, URL, name["X-Job-Id"], PIECES)
        asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking


async def whole_elsewhere(framework: Any) -> None:
    """Wait for an answer that is cancelled at the worker."""
    name = job("whole_elsewhere")
    cancelling = asyncio.create_task(asyncio.to_thread(cancel, URL, name["X-Job-Id"], PIECES))
    try:
        await framework.slow_whole(name, stopping=False)
    finally:
        await cancelling


async def main() -> None:
    """Ask in each way."""
    framework = FRAMEWORKS[NAME]()
    others = {
        "stopped": stopped,
        "elsewhere": elsewhere,
        "whole_stopped": whole_stopped,
        "whole_elsewhere": whole_elsewhere,
    }
    said = {
        way: await outcome(others[way](framework) if way in others else getattr(framework, way)())
        for way in WAYS
    }
    print("\n" + json.dumps(said), flush=True)


asyncio.run(main())
