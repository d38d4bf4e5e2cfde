"""Names of a job's uses, towards the engine (`run`) and towards clients (`incarnation`)."""

import hashlib
from itertools import count


class Incarnations:
    """Hands out both. `epoch` is a secret of this start of the worker: incarnations are unique across restarts."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch.encode()
        self._runs = count(1)

    def next(self) -> tuple[int, str]:
        """A run and its incarnation, which is opaque: a plain number would show each tenant how many jobs the others
        start."""
        run = next(self._runs)
        return run, hashlib.blake2b(b"%d" % run, key=self._epoch, digest_size=10).hexdigest()
