"""The input items of a response, including those of the responses that it continues."""

import json
import sys
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import Request

from worker_orcd.jobs.errors import invalid

Item = dict[str, Any]
"""An item as the API returns it, with an id."""
MAX_PAGE = 100
DEFAULT_PAGE = 20
PARAMETERS: dict[str, Any] = {
    "parameters": [
        {
            "name": "limit",
            "in": "query",
            "description": f"items per page; default: {DEFAULT_PAGE}",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
        },
        {
            "name": "order",
            "in": "query",
            "description": "`desc` (default): the latest item first; or `asc`",
            "schema": {"enum": ["asc", "desc"]},
        },
        {
            "name": "after",
            "in": "query",
            "description": "the `id` of the last item of the previous page; an unknown id: 400",
            "schema": {"type": "string"},
        },
    ]
}
"""The query parameters that `page_of` reads."""
_ITEM_BYTES = 2048
"""Memory of an item in addition to its text."""


def without_logprobs(item: Item) -> Item:
    """An output item as an input item. Its log probabilities are not needed any more."""
    if item["type"] != "message":
        return item
    return {**item, "content": [{**part, "logprobs": []} for part in item["content"]]}


def kept_bytes(items: Sequence[Item]) -> int:
    """Approximate upper bound of these items' memory."""
    return sum(_ITEM_BYTES + sys.getsizeof(json.dumps(item, ensure_ascii=False)) for item in items)


def page_of(items: Sequence[Item], request: Request) -> dict[str, Any]:
    """The page of items selected by the query's `order`, `after` and `limit`; by default the 20 latest, latest first.

    Raises:
        JobError: `INVALID_REQUEST` naming the faulty parameter.
    """
    ordered = list(items) if _order(request.query_params.get("order")) == "asc" else list(reversed(items))
    limit = _limit(request.query_params.get("limit"))
    after = request.query_params.get("after")
    if after:
        start = next((place for place, item in enumerate(ordered, 1) if item["id"] == after), None)
        if start is None:
            raise invalid("after is not the id of an item of this response", "after")
        ordered = ordered[start:]
    page = ordered[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > len(page),
    }


def _order(given: str | None) -> Literal["asc", "desc"]:
    match given or "desc":
        case "asc":
            return "asc"
        case "desc":
            return "desc"
    raise invalid("order must be asc or desc", "order")


def _limit(given: str | None) -> int:
    if not given:
        return DEFAULT_PAGE
    if not (given.isascii() and given.isdigit() and len(given) <= 3 and 1 <= int(given) <= MAX_PAGE):
        raise invalid(f"limit must be a whole number from 1 to {MAX_PAGE}", "limit")
    return int(given)
