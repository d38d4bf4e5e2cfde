"""A job put into the words of the protocol."""

from worker_orcd import narration
from worker_orcd.jobs.job import Job
from worker_orcd.jobs.request import MAX_STOP_TOKENS
from worker_orcd.protocol import messages


def to_prepare(job: Job) -> messages.Prepare:
    """Have its prompt rendered and tokenized."""
    request = job.request
    return messages.Prepare(
        run=job.run,
        job_id=job.job_id,
        correlation_id=job.correlation_id,
        prompt=request.prompt,
        template=request.template,
        stop=request.stop,
        max_stop_tokens=MAX_STOP_TOKENS,
        sampling=request.sampling(job.seed),
        owner=job.owner,
        constraint=_constraint(job),
    )


def to_run(job: Job) -> messages.Run:
    """Have it generated, from its tokens so far on."""
    request = job.request
    # A prompt is scored as a whole; in a run that is requeued behind it, not again.
    scored = request.scored_prompt if len(job.prompt_logprobs) < (job.prompt_length or 0) else None
    chars, sha256 = narration.prompt_digest(request.text)
    return messages.Run(
        run=job.run,
        job_id=job.job_id,
        correlation_id=job.correlation_id,
        prompt=job.prompt_tokens or (),
        generated=tuple(job.tokens),
        max_tokens=job.max_tokens,
        stop=request.stop,
        sampling=request.sampling(job.seed),
        prompt_chars=chars,
        prompt_sha256=sha256,
        owner=job.owner,
        cache=_namespace(job) if request.cache_prompt and scored is None else None,
        prompt_logprobs=scored,
        constraint=_constraint(job),
    )


def _constraint(job: Job) -> messages.Constraint | None:
    """What its output must be."""
    given = job.request.constraint
    return None if given is None else messages.Constraint(given.kind, given.text, given.lenient)


def _namespace(job: Job) -> str:
    """Whose computed prefixes a job may use: those of jobs with the same API key and the same salt."""
    return f"{job.owner}\0{job.request.cache_salt or ''}"
