"""The time to the first token does not reveal another key's prompts (G14)."""

import itertools
import random
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from worker_orcd.testing.harness import running_worker

ANNA, BERTA = "anna-0123456789abcdef", "berta-0123456789abcdef"
PAIRS = 1000
"""Where times say nothing, the area is 0.5 with a standard deviation of 0.013, which exceeds 0.05 by chance once in
9,000 runs."""
ALLOWED = 0.05


def roc_area(seen: list[float], fresh: list[float]) -> float:
    """How often a prompt that the other key has sent is quicker than one that it has not; 0.5: times say nothing."""
    ordered = sorted([(sec, 0) for sec in seen] + [(sec, 1) for sec in fresh])
    ranks = sum(rank for rank, (_, kind) in enumerate(ordered, start=1) if kind)
    below = ranks - len(fresh) * (len(fresh) + 1) / 2
    return below / (len(seen) * len(fresh))


@pytest.mark.nightly
def test_first_token_times_tell_nothing_across_keys(tmp_path: Path) -> None:
    """In turns, at random: prompts that the other key has just sent, and prompts that are new. The key itself is the
    counter-check: its own prompts are distinguishable."""
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{ANNA}\n{BERTA}\n")
    keys.chmod(0o600)
    chance, number = random.Random(4), itertools.count()
    times: dict[tuple[str, bool], list[float]] = {
        (who, seen): [] for who in (ANNA, BERTA) for seen in (True, False)
    }
    with (
        running_worker(api_key_file=str(keys)) as worker,
        httpx.Client(base_url=worker.url, timeout=60) as client,
    ):

        def first_token_sec(prompt: str, key: str) -> float:
            body = {"job_id": f"timed-{next(number)}", "prompt": prompt, "max_tokens": 1}
            started = time.monotonic()
            headers = {"Authorization": f"Bearer {key}"}
            with client.stream("POST", "/execute", json=body, headers=headers) as answer:
                for line in answer.iter_lines():
                    if line == "event: token":
                        return time.monotonic() - started
            raise AssertionError("no token")

        def a_prompt() -> str:
            return '{"row_ms": 0.2}' + f"{next(number):08}" + "x" * 80

        order = [seen for seen in (True, False) for _ in range(PAIRS)]
        chance.shuffle(order)
        for seen in order:
            sent, unsent = a_prompt(), a_prompt()
            first_token_sec(sent, ANNA)
            times[BERTA, seen].append(first_token_sec(sent if seen else unsent, BERTA))
            if len(times[ANNA, seen]) < PAIRS // 5:
                times[ANNA, seen].append(first_token_sec(sent if seen else a_prompt(), ANNA))
    across = roc_area(times[BERTA, True], times[BERTA, False])
    own = roc_area(times[ANNA, True], times[ANNA, False])
    print(f"\nROC area over {PAIRS} pairs: across keys {across:.3f}, of the same key {own:.3f}")
    assert own > 0.9, "the measurement does not detect cached prompts"
    assert abs(across - 0.5) <= ALLOWED
