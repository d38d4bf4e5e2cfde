"""`Prefer: wait=N` (RFC 7240): how long the response may wait for a result."""

import re

MAX_WAIT_SEC = 10
_WAIT = re.compile(r"wait\s*=\s*(?:(\d{1,9})|\"(\d{1,9})\")(?:\s*;.*)?", re.IGNORECASE)


def wait_of(header: str) -> int:
    """Seconds to wait, at most `MAX_WAIT_SEC`; 0 without this preference.

    As the RFC demands, invalid values are ignored: no preference may prevent a cancel.
    """
    for preference in header.split(","):
        match = _WAIT.fullmatch(preference.strip())
        if match:
            return min(int(match[1] or match[2]), MAX_WAIT_SEC)
    return 0
