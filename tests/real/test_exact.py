"""`--exact`: a stream is byte-identical whatever runs beside it."""

import pytest

from tests.real.cancels import storm
from worker_orcd.testing.harness import RunningWorker, Stream
from worker_orcd.testing.trials import HAIKU, STORY, long_prompt

JOBS: list[dict[str, object]] = [
    {"prompt": STORY, "temperature": 0.0},
    {"prompt": STORY, "temperature": 0.7, "seed": 1},
    {"prompt": HAIKU, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 2},
    {
        "prompt": long_prompt(5, 150),
        "template": "none",
        "temperature": 0.7,
        "repetition_penalty": 1.2,
        "seed": 3,
    },
    {"prompt": long_prompt(6, 100), "template": "none", "temperature": 0.0},
]


def run(worker: RunningWorker, name: str, number: int) -> Stream:
    """Execute one of the jobs."""
    return worker.execute(f"{name}-{number}", ignore_eos=True, max_tokens=32, **JOBS[number])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alone(exact_worker: RunningWorker) -> list[list[str]]:
    """Each job's tokens when nothing runs beside it."""
    return [tokens(run(exact_worker, "alone", number).finished()) for number in range(len(JOBS))]


def tokens(stream: Stream) -> list[str]:
    """The texts of a whole stream's tokens."""
    stream.assert_whole()
    assert len(stream.tokens) == 32
    return [token.data["t"] for token in stream.tokens]


def test_health_says_that_streams_are_exact(exact_worker: RunningWorker, real_worker: RunningWorker) -> None:
    """The self-check ran and passed; without `--exact` nothing is claimed."""
    assert exact_worker.health()["exact"] is True
    assert real_worker.health()["exact"] is False


@pytest.mark.nightly
def test_streams_are_identical_alone_and_beside_seven_others(
    exact_worker: RunningWorker, alone: list[list[str]]
) -> None:
    """Greedy and sampled, with penalties and filters, all sequences busy: not one byte differs."""
    others = [
        exact_worker.execute(f"other-{n}", STORY, ignore_eos=True, max_tokens=80, temperature=1.0, seed=n)
        for n in range(3)
    ]
    together = [run(exact_worker, "together", number) for number in range(len(JOBS))]
    assert [tokens(stream.finished()) for stream in together] == alone
    for other in others:
        other.finished().assert_whole()


def test_streams_are_identical_beside_a_storm_of_cancels(
    exact_worker: RunningWorker, alone: list[list[str]]
) -> None:
    """Aborted steps, moved sequences and freed cells beside them change nothing."""
    streams = [run(exact_worker, "stormy", number) for number in range(len(JOBS))]
    assert storm(exact_worker, "exact-storm", streams) > 0
    assert [tokens(stream.finished()) for stream in streams] == alone
