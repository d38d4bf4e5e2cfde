"""`Prefer: wait=N` (RFC 7240): how long a client would like an answer to wait."""

import re

from worker_orcd.jobs.errors import invalid

MOST_WAIT_SEC = 10
_WAIT = re.compile(r"wait(?:\s*=\s*(?:(\d{1,9})|\"(\d{1,9})\"))?(?:\s*;.*)?", re.IGNORECASE)


def wait_of(header: str) -> int:
    """Seconds to wait, at most `MOST_WAIT_SEC`; 0 without the preference. Other preferences are not ours to know.

    Raises:
        JobError: `INVALID_REQUEST`, `wait` has no whole number of seconds.
    """
    for preference in header.split(","):
        name = preference.strip()
        if not re.match(r"wait\b", name, re.IGNORECASE):
            continue
        match = _WAIT.fullmatch(name)
        seconds = match and (match[1] or match[2])
        if not seconds:
            raise invalid("Prefer: wait needs a whole number of seconds, such as wait=5", "Prefer")
        return min(int(seconds), MOST_WAIT_SEC)
    return 0
