"""The side threads: prompts become token ids while the loop computes."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from worker_orcd import narration
from worker_orcd.engine.model import Model, PromptRefused
from worker_orcd.protocol.messages import FromEngine, Prepare, Prepared, Refused

THREADS = 4
"""Prompts prepared at a time: one, and up to three slow ones beside it."""


def prepare(request: Prepare, model: Model, slow: Callable[[], None] = lambda: None) -> Prepared | Refused:
    """Render and tokenize one prompt, and check what only the model can check. `slow`: as in `Model.encode`."""
    try:
        for stop in request.stop:
            count = model.count_tokens(stop)
            if count > request.max_stop_tokens:
                most = request.max_stop_tokens
                return Refused(
                    request.run, f"a stop string has {count} tokens, at most {most} are allowed", "stop"
                )
        if request.top_k > model.facts.vocab_size:
            known = model.facts.vocab_size
            return Refused(
                request.run, f"top_k is {request.top_k}, the vocabulary has {known} tokens", "top_k"
            )
        tokens = tuple(model.encode(request.prompt, request.template, slow))
    except PromptRefused as error:
        return Refused(request.run, str(error), error.param)
    if not tokens:
        return Refused(request.run, "the prompt has no tokens", "prompt")
    return Prepared(request.run, tokens)


def prepare_all(
    requests: "SimpleQueue[Prepare]",
    model: Model,
    send: Callable[[FromEngine], None],
    narrator: narration.Narrator,
) -> None:
    """Answer requests for ever, one after the other. A slow prompt is prepared beside those that come after it.

    A prompt waits for at most 0.1 s for each slow one before it. Only when four are slow at once does the next one
    wait until the first of them is done, which takes at most 2 s of CPU time.
    """
    lock = threading.Lock()
    arguments = (requests, model, send, narrator, lock)
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
    requests: "SimpleQueue[Prepare]",
    model: Model,
    send: Callable[[FromEngine], None],
    narrator: narration.Narrator,
    lock: threading.Lock,
) -> None:
    turn = _Turn(lock)
    while True:
        turn.take()
        request = requests.get()
        try:
            answer: FromEngine = prepare(request, model, turn.pass_on)
        except Exception as error:  # noqa: BLE001  # Reported as INTERNAL; the thread must live on for the next prompt.
            narrator.tell(
                narration.Error.from_exception(
                    error, code="INTERNAL", message="preparing a prompt failed", job_id=request.job_id
                ),
                correlation_id=request.correlation_id,
                owner=request.owner,
            )
            answer = Refused(request.run, "the prompt could not be prepared", None)
        send(answer)
        turn.pass_on()
