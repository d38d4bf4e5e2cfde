"""Threads that tokenize prompts while the loop computes."""

import json
import threading
from collections.abc import Callable

from worker_orcd import narration
from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.grammars.masks import ConstraintRefused
from worker_orcd.engine.model import Model, PromptRefused
from worker_orcd.engine.prompts import Prompts
from worker_orcd.protocol.messages import (
    Accepted,
    FromEngine,
    Rejected,
    Rendering,
    Submit,
    Tokenize,
    Tokenized,
)

THREADS = 16
"""Number of threads. The front sends an engine at most this many prompts at a time (`jobs/preparing.py`), so no prompt
waits for another one's rendering."""


Answer = Accepted | Tokenized | Rejected
_FIELDS = {
    "json_schema": "json_schema",
    "gbnf": "grammar",
    "lark": "grammar",
    "regex": "grammar",
    "tools": "json_schema",
}
"""By kind, a job's field with its constraint."""


def prepare(request: Submit | Tokenize, model: Model, in_hand: CurrentPrompt | None = None) -> Answer:
    """Render and tokenize one prompt, and make the checks that need the model. `in_hand`: as in `Model.encode`."""
    try:
        if isinstance(request, Tokenize):
            tokens = _tokens(request, model, in_hand)
            return Tokenized(request.run, tokens, tuple(map(model.name, tokens)))
        _check(request, model, in_hand)
        tokens = _tokens(request, model, in_hand)
    except PromptRefused as error:
        return Rejected(request.run, str(error), error.param)
    if not tokens:
        return Rejected(request.run, "the prompt has no tokens", "prompt")
    return Accepted(request.run, tokens)


def _check(request: Submit, model: Model, in_hand: CurrentPrompt | None) -> None:
    """Check the stop strings' lengths and the sampling parameters against the vocabulary, and try the constraint.

    Raises:
        PromptRefused: a check failed.
    """
    if request.embed is None and not model.generates:
        raise PromptRefused("this model generates no text; it serves /v1/embeddings", "model")
    if request.embed is not None and model.pooling == "none":
        raise PromptRefused("this model is not an embedding model, and the worker has no --pooling", "model")
    if request.embed is not None and request.embed > model.dimensions:
        fault = f"dimensions is {request.embed}, the model's embeddings have {model.dimensions}"
        raise PromptRefused(fault, "dimensions")
    for stop in request.stop:
        count, most = model.count_tokens(stop), request.max_stop_tokens
        if count > most:
            raise PromptRefused(f"a stop string has {count} tokens, at most {most} are allowed", "stop")
    for param, fault in request.sampling.beyond(model.facts.vocab_size):
        raise PromptRefused(fault, param)
    if request.constraint is not None:
        try:
            model.grammars.check(request.constraint, in_hand)
        except ConstraintRefused as error:
            raise PromptRefused(str(error), error.param or _FIELDS[request.constraint.kind]) from error


def _tokens(request: Submit | Tokenize, model: Model, in_hand: CurrentPrompt | None) -> tuple[int, ...]:
    """The prompt's token ids.

    Raises:
        PromptRefused: the prompt cannot be rendered or tokenized.
    """
    if request.template != "tokens":
        return tuple(model.encode(request.prompt, request.template, in_hand))
    tokens = tuple(json.loads(request.prompt))
    if max(tokens, default=0) >= model.facts.vocab_size:
        fault = f"prompt has token {max(tokens)}, the vocabulary has {model.facts.vocab_size} tokens"
        raise PromptRefused(fault, "prompt")
    return tokens


def prepare_all(
    prompts: Prompts, model: Model, send: Callable[[FromEngine], None], narrator: narration.Narrator
) -> None:
    """Prepare prompts one after the other, forever. A slow prompt is prepared in parallel with later ones.

    So a prompt waits at most 0.1 s for each slow prompt before it. The front is informed of slow prompts, because it
    limits how long an engine may take for the others (`supervisor/liveness.py`).
    """
    lock = threading.Lock()
    arguments = (prompts, model, send, narrator, lock)
    for _ in range(THREADS - 1):
        threading.Thread(target=_prepare_in_turn, args=arguments, name="preparer", daemon=True).start()
    _prepare_in_turn(*arguments)


class _Turn:
    """The right to take the next prompt. A thread holds it until its prompt is prepared or turns out to be slow."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._held = False

    def take(self) -> None:
        self._lock.acquire()
        self._held = True

    def pass_on(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()


def _prepare_in_turn(
    prompts: Prompts,
    model: Model,
    send: Callable[[FromEngine], None],
    narrator: narration.Narrator,
    lock: threading.Lock,
) -> None:
    turn = _Turn(lock)
    while True:
        turn.take()
        with prompts.next() as (request, in_hand):

            def slow(is_slow: bool, run: int = request.run) -> None:
                send(Rendering(run, is_slow))
                turn.pass_on()

            in_hand.slow = slow
            answer = _answer(request, model, narrator, in_hand)
            if isinstance(request, Submit) and isinstance(answer, Accepted):
                prompts.accept(request, answer.prompt)
        send(answer)
        turn.pass_on()


def _answer(
    request: Submit | Tokenize, model: Model, narrator: narration.Narrator, in_hand: CurrentPrompt
) -> Answer:
    if in_hand.dropped:
        return Rejected(request.run, "the job has ended", None)
    try:
        return prepare(request, model, in_hand)
    except Exception as error:  # noqa: BLE001  # Reported as INTERNAL; the thread must live on for the next prompt.
        narrator.emit(
            narration.Error.from_exception(
                error,
                code="INTERNAL",
                message="preparing a prompt failed",
                job_id=request.job_id if isinstance(request, Submit) else "",
            ),
            correlation_id=request.correlation_id,
            owner=request.owner,
        )
        return Rejected(request.run, "the prompt could not be prepared", None)
