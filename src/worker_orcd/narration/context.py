"""The correlation id of the request being served (contract, "Headers").

The HTTP middleware sets it, every event logged meanwhile carries it. In short:

    token = context.correlation_id.set(context.accept_correlation_id(header))
    try: ...
    finally: context.correlation_id.reset(token)
"""

import re
import uuid
from contextvars import ContextVar

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
"""Its `get`, `set` and `reset` are the whole interface; asyncio tasks inherit it from the task that starts them."""

owner: ContextVar[str | None] = ContextVar("owner", default=None)
"""Whose request it is, when there are API keys."""

UNAUTHENTICATED = "stranger"
"""The owner of a request without a valid key: only operators see its events."""

_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]{1,128}")


def is_correlation_id(text: str) -> bool:
    """Say whether `text` can serve as a correlation id: 1 to 128 visible ASCII characters, no space."""
    return _VISIBLE_ASCII.fullmatch(text) is not None


def new_correlation_id() -> str:
    """Return a fresh correlation id: a random UUID as 32 hex digits."""
    return uuid.uuid4().hex


def accept_correlation_id(*offered: str | None) -> str:
    """Return the first of the client's own ids that can serve as one, otherwise a new one. Never refuses a request."""
    return next((one for one in offered if one is not None and is_correlation_id(one)), new_correlation_id())
