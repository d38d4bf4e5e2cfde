"""Default sampling of `execute` and `chat`: the values that the model's file recommends."""

from typing import Any

from worker_orcd.client import SyncClient, WorkerRefused

FALLBACK: dict[str, float] = {"temperature": 0.3, "top_p": 0.9}
"""For models without recommendations. Conservative, so that small models write meaningful text."""
_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def with_defaults(client: SyncClient, given: dict[str, Any]) -> dict[str, Any]:
    """Add the model's recommended sampling to the given options, which take precedence.

    Raises:
        WorkerError: the worker cannot be reached, or refuses the key.
    """
    return {**_defaults(client), **given}


def _defaults(client: SyncClient) -> dict[str, Any]:
    try:
        models = client.models()
    except WorkerRefused as error:
        if error.code == "UNAUTHORIZED":
            raise
        return FALLBACK  # The worker does not have this endpoint.
    recommended = models[0].get("recommended_sampling") if models else None
    usable = {
        name: value for name in _FIELDS if isinstance(value := (recommended or {}).get(name), int | float)
    }
    return usable or FALLBACK
