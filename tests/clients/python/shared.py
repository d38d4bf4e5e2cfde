"""What the scripts in this folder share. They run in environments without our package."""

import json
import time
import urllib.request
from contextlib import suppress
from typing import Literal

from pydantic import BaseModel, Field


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    city: Literal["Bern", "Oslo"]
    age: int = Field(ge=0, le=99)


def generated(url: str, job: str, tokens: int) -> None:
    """Wait until a job has generated so many tokens."""
    until, done = time.monotonic() + 60, 0
    while done < tokens:
        if time.monotonic() > until:
            raise TimeoutError(f"{job} has {done} of {tokens} tokens after 60 s")
        time.sleep(0.01)
        with suppress(OSError), urllib.request.urlopen(f"{url}/jobs/{job}") as answer:  # noqa: S310
            done = json.load(answer)["tokens_out"] or 0


def cancel(url: str, job: str, tokens: int) -> None:
    """Cancel a job at the worker once it has generated so many tokens."""
    generated(url, job, tokens)
    urllib.request.urlopen(f"{url}/cancel", json.dumps({"job_id": job}).encode()).close()  # noqa: S310
