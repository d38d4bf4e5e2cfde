"""The sampling values that a model's authors recommend (`general.sampling.*` in its file), as fields of a job."""

from collections.abc import Mapping

from worker_orcd.jobs.errors import JobError
from worker_orcd.jobs.request import ExecuteRequest

_FIELDS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""Keys under `general.sampling`, and the corresponding fields of `POST /execute`."""


def recommended_sampling(in_file: Mapping[str, float]) -> dict[str, float]:
    """Return the recommendations that are valid for a job. Values that jobs may not have are left out."""
    found = {field: in_file[key] for key, field in _FIELDS.items() if key in in_file}
    return {field: value for field, value in found.items() if _is_allowed(field, value)}


def _is_allowed(field: str, value: float) -> bool:
    try:
        ExecuteRequest.of(job_id="recommended", prompt="a", **{field: value})
    except JobError:
        return False
    return True
