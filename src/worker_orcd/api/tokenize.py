"""`POST /tokenize`, `/detokenize` and `/apply-template`, compatible with llama-server and vLLM."""

import json
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from worker_orcd.api import schema
from worker_orcd.api.access import owner_of
from worker_orcd.api.openai.completion_request import TokenId
from worker_orcd.api.openai.conversation import ChatMessage, conversation
from worker_orcd.api.openai.conversation_end import ConversationEnd
from worker_orcd.api.openai.names import error_style
from worker_orcd.api.submit import unless_disconnected
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body
from worker_orcd.narration.context import correlation_id
from worker_orcd.protocol.messages import Template, Tokenized
from worker_orcd.sampling import shown
from worker_orcd.worker.interface import WorkerInterface
from worker_orcd.worker.tokenizing import no_engine


class TokenizeRequest(ConversationEnd):
    """The body of `POST /tokenize`: a text (llama-server's `content` or vLLM's `prompt`), or a conversation."""

    model_config = ConfigDict(extra="ignore")

    content: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    add_special: bool | None = Field(default=None, description="for `content`; default: false")
    add_special_tokens: bool | None = Field(default=None, description="for `prompt`; default: true")
    parse_special: Literal[True] | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    @property
    def asks_for(self) -> tuple[str, Template]:
        """The prompt, and its template.

        Raises:
            JobError: `INVALID_REQUEST`: the body does not have exactly one text or conversation.
        """
        name = self.field
        if self.messages is not None:
            return self.ended(conversation(self.messages, name)), "messages"
        adds = self.add_special if self.add_special_tokens is None else self.add_special_tokens
        adds = name == "prompt" if adds is None else adds
        return (self.content if name == "content" else self.prompt) or "", "none" if adds else "plain"

    @property
    def field(self) -> str:
        """The name of the field with the text or conversation.

        Raises:
            JobError: `INVALID_REQUEST`: the body does not have exactly one such field.
        """
        texts = {"content": self.content, "prompt": self.prompt, "messages": self.messages}
        given = [name for name, value in texts.items() if value is not None]
        if len(given) != 1:
            raise invalid(
                "exactly one of content, prompt and messages is required", (given or ["content"])[-1]
            )
        return given[0]


class DetokenizeRequest(Body):
    """The body of `POST /detokenize`: token ids."""

    model_config = ConfigDict(extra="ignore")

    tokens: list[TokenId]


class ApplyTemplateRequest(ConversationEnd):
    """The body of `POST /apply-template`: a conversation."""

    model_config = ConfigDict(extra="ignore")

    messages: list[ChatMessage] = Field(min_length=1)


def router(worker: WorkerInterface) -> APIRouter:
    """The routes of these resources."""
    routes = APIRouter(tags=["tokens"])

    async def prepare(request: Request, prompt: str, template: Template, param: str) -> Tokenized:
        with error_style({"prompt": param}):
            return await unless_disconnected(
                request,
                worker.tokenize(prompt, template, correlation_id.get() or "", owner_of(request)),
            )

    @routes.post(
        "/tokenize",
        summary="The tokens of a text or a conversation",
        responses=_answer("`tokens`, `count` and `max_model_len`"),
        openapi_extra=schema.body(TokenizeRequest, {"content": "The sea is"}),
    )
    async def tokenize(request: Request) -> JSONResponse:
        asked = TokenizeRequest.parse(await request.body())
        prompt, template = asked.asks_for
        prepared = await prepare(request, prompt, template, asked.field)
        pairs = zip(prepared.prompt, prepared.pieces, strict=True)
        answer: dict[str, Any] = {
            "tokens": [{"id": token, "piece": _piece(piece)} for token, piece in pairs]
            if asked.with_pieces
            else prepared.prompt,
            "count": len(prepared.prompt),
            "max_model_len": worker.engine.cells_per_job if worker.engine else None,
        }
        if asked.return_token_strs:
            answer["token_strs"] = [shown(piece) for piece in prepared.pieces]
        return JSONResponse(answer)

    @routes.post(
        "/detokenize",
        summary="The text of tokens",
        responses=_answer("The text, as `content` and as `prompt`"),
        openapi_extra=schema.body(DetokenizeRequest, {"tokens": [504, 3040]}),
    )
    async def detokenize(request: Request) -> JSONResponse:
        asked = DetokenizeRequest.parse(await request.body())
        text = _text(await prepare(request, json.dumps(asked.tokens), "tokens", "tokens"))
        return JSONResponse({"content": text, "prompt": text})

    @routes.get(
        "/tokenizer_info",
        summary="The tokens that begin and end a sequence, as in vLLM",
        responses=schema.answer(
            200,
            "`bos_token`, `eos_token` and `model_max_length`",
            "application/json",
            schema={"type": "object"},
        )
        | schema.errors(401, 503),
    )
    async def tokenizer_info() -> JSONResponse:
        engine = worker.engine
        if engine is None:
            raise no_engine()
        return JSONResponse(
            {
                "tokenizer_class": engine.tokenizer_kind,
                "bos_token": engine.bos or None,
                "eos_token": engine.eos or None,
                "model_max_length": engine.cells_per_job,
            }
        )

    @routes.post(
        "/apply-template",
        summary="The prompt of a conversation",
        responses=_answer("The `prompt`, as the model receives it"),
        openapi_extra=schema.body(ApplyTemplateRequest, {"messages": [{"role": "user", "content": "Hello"}]}),
    )
    async def apply_template(request: Request) -> JSONResponse:
        asked = ApplyTemplateRequest.parse(await request.body())
        prompt = asked.ended(conversation(asked.messages, "messages"))
        return JSONResponse({"prompt": _text(await prepare(request, prompt, "messages", "messages"))})

    return routes


def _piece(piece: bytes) -> str | list[int]:
    """A token in llama-server's format: its text, or its bytes if they are not whole characters."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def _text(prepared: Tokenized) -> str:
    return b"".join(prepared.pieces).decode("utf-8", "replace")


def _answer(description: str) -> schema.Responses:
    described = schema.answer(200, description, "application/json", schema={"type": "object"})
    return described | schema.errors(400, 401, 413, 429, 503)
