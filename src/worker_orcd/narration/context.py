"""The correlation id of the request being served.

The HTTP middleware sets it, and every event logged meanwhile contains it. For example:

    token = context.correlation_id.set(context.accept_correlation_id(header))
    try: ...
    finally: context.correlation_id.reset(token)
"""

import re
import uuid
from contextvars import ContextVar

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
"""Asyncio tasks inherit it from the task that starts them."""

owner: ContextVar[str | None] = ContextVar("owner", default=None)
"""The owner of the request, if the worker has API keys."""

UNAUTHENTICATED = "stranger"
"""The owner of requests without a valid key. Only operators see their events."""

_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]{1,128}")


def is_correlation_id(text: str) -> bool:
    """Return whether `text` is a valid correlation id: 1 to 128 visible ASCII characters, without spaces."""
    return _VISIBLE_ASCII.fullmatch(text) is not None


def new_correlation_id() -> str:
    """Return a new correlation id: a random UUID as 32 hex digits."""
    return uuid.uuid4().hex


def accept_correlation_id(*offered: str | None) -> str:
    """Return the first valid id of those that the client sent, otherwise a new one. Never refuses a request."""
    return next((one for one in offered if one is not None and is_correlation_id(one)), new_correlation_id())
