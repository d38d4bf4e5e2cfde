"""The side threads: prompts become token ids while the loop computes."""

import json
import threading
from collections.abc import Callable

from worker_orcd import narration
from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.grammars.masks import ConstraintRefused
from worker_orcd.engine.model import Model, PromptRefused
from worker_orcd.engine.prompts import Prompts
from worker_orcd.protocol.messages import FromEngine, Prepare, Prepared, Refused, Rendering

THREADS = 16
"""As many as the prompts that the front gives an engine at a time (`jobs/preparing.py`): none waits for another one's
rendering."""


def prepare(request: Prepare, model: Model, in_hand: CurrentPrompt | None = None) -> Prepared | Refused:
    """Render and tokenize one prompt, and check what only the model can check. `in_hand`: as in `Model.encode`."""
    try:
        for stop in request.stop:
            count = model.count_tokens(stop)
            if count > request.max_stop_tokens:
                most = request.max_stop_tokens
                return Refused(
                    request.run, f"a stop string has {count} tokens, at most {most} are allowed", "stop"
                )
        for param, fault in request.sampling.beyond(model.facts.vocab_size):
            return Refused(request.run, fault, param)
        if request.constraint is not None:
            model.grammars.check(request.constraint, in_hand)
        if request.template == "tokens":
            tokens = tuple(json.loads(request.prompt))
            if max(tokens, default=0) >= model.facts.vocab_size:
                fault = f"prompt has token {max(tokens)}, the vocabulary has {model.facts.vocab_size} tokens"
                return Refused(request.run, fault, "prompt")
        else:
            tokens = tuple(model.encode(request.prompt, request.template, in_hand))
    except PromptRefused as error:
        return Refused(request.run, str(error), error.param)
    except ConstraintRefused as error:
        is_schema = request.constraint is not None and request.constraint.kind == "json_schema"
        return Refused(request.run, str(error), "json_schema" if is_schema else "grammar")
    if request.pieces:
        return Prepared(request.run, tokens, tuple(map(model.name, tokens)))
    if not tokens:
        return Refused(request.run, "the prompt has no tokens", "prompt")
    return Prepared(request.run, tokens)


def prepare_all(
    prompts: Prompts, model: Model, send: Callable[[FromEngine], None], narrator: narration.Narrator
) -> None:
    """Prepare prompts for ever, one after the other. A slow one is prepared beside those that come after it.

    So a prompt waits for at most 0.1 s for each slow one before it. The front learns which prompts are slow, since it
    judges how long the engine is at the others (`supervisor/liveness.py`).
    """
    lock = threading.Lock()
    arguments = (prompts, model, send, narrator, lock)
    for _ in range(THREADS - 1):
        threading.Thread(target=_prepare_in_turn, args=arguments, name="preparer", daemon=True).start()
    _prepare_in_turn(*arguments)


class _Turn:
    """The right to take the next prompt. A thread keeps it until its prompt is prepared or turns out to be slow."""

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
        send(answer)
        turn.pass_on()


def _answer(
    request: Prepare, model: Model, narrator: narration.Narrator, in_hand: CurrentPrompt
) -> Prepared | Refused:
    if in_hand.dropped:
        return Refused(request.run, "the job has ended", None)
    try:
        return prepare(request, model, in_hand)
    except Exception as error:  # noqa: BLE001  # Reported as INTERNAL; the thread must live on for the next prompt.
        narrator.emit(
            narration.Error.from_exception(
                error, code="INTERNAL", message="preparing a prompt failed", job_id=request.job_id
            ),
            correlation_id=request.correlation_id,
            owner=request.owner,
        )
        return Refused(request.run, "the prompt could not be prepared", None)
