"""The side thread: prompts become token ids while the loop computes."""

from collections.abc import Callable
from queue import SimpleQueue

from worker_orcd import narration
from worker_orcd.engine.model import Model, PromptRefused
from worker_orcd.protocol.messages import FromEngine, Prepare, Prepared, Refused


def prepare(request: Prepare, model: Model) -> Prepared | Refused:
    """Render and tokenize one prompt, and check what only the model can check."""
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
        tokens = tuple(model.encode(request.prompt, request.template))
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
    """Answer requests for ever. Whatever one of them does, the next is answered too."""
    while True:
        request = requests.get()
        try:
            answer: FromEngine = prepare(request, model)
        except Exception as error:  # noqa: BLE001  # Told as INTERNAL; the thread must live on for the next prompt.
            narrator.tell(
                narration.Error.from_exception(
                    error, code="INTERNAL", message="preparing a prompt failed", job_id=request.job_id
                ),
                correlation_id=request.correlation_id,
                owner=request.owner,
            )
            answer = Refused(request.run, "the prompt could not be prepared", None)
        send(answer)
