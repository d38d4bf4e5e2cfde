"""The real worker on a machine that others keep busy (G16): three llama.cpp engines that compute without pause, whose
threads spin at barriers, and busy loops. Ten minutes, in the nightly lane; `BUSY_MACHINE_SEC` sets how long.

In the other lanes `test_starvation.py` starves an engine for certain, and `tests/unit/test_liveness.py` replays the
silences that were recorded on such a machine.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import psutil
import pytest

from tests.helpers import at_rest, fresh_id, script
from worker_orcd.settings import bundled_model
from worker_orcd.testing.harness import RunningWorker, Stream, running_worker, wait_until

ENGINES, BUSY_LOOPS = 3, 2
BUSY_SEC = float(os.environ.get("BUSY_MACHINE_SEC", "600"))
PROMPTS = ("Tell me a long story. ", "word " * 300)
TOKENS = 10
FOUND_WITHIN_SEC = 120.0
"""An engine that is stopped, or computes without end, is found and replaced by then, though its successor loads on a
machine that is busy."""

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(BUSY_SEC + 1800),  # Everything takes many times as long here.
]

ENGINE = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=2048, verbose=False)
print("computing", flush=True)
while True:
    model.reset()
    model.eval(model.tokenize(b"word " * 400))
    for _ in range(400):
        model.eval([model.sample(temp=0.0)])
"""
BUSY_LOOP = "print('computing', flush=True)\nwhile True: pass"


@pytest.fixture(scope="module")
def worker() -> Iterator[RunningWorker]:
    """A worker that is started before the neighbours."""
    with running_worker("llama", inference_timeout_sec=3600) as worker:
        yield worker


@pytest.fixture(scope="module")
def neighbours(worker: RunningWorker) -> Iterator[list[psutil.Process]]:
    """Processes that compute without pause to the end of this module. They come after `worker`."""
    assert worker.health()["status"] == "healthy"
    model = str(bundled_model())
    with ExitStack() as stack:
        processes = []
        for code in [ENGINE] * ENGINES + [BUSY_LOOP] * BUSY_LOOPS:
            process = subprocess.Popen([sys.executable, "-c", code, model], stdout=subprocess.PIPE)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.enter_context(closing(process.stdout))
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"computing\n"
        yield [psutil.Process(process.pid) for process in processes]


def works_beside(worker: RunningWorker, neighbours: list[psutil.Process], sec: float) -> None:
    """For so long the worker has one stream after the other, four at a time, and its engine is never killed."""
    pid = worker.engine_pid
    streams: list[Stream] = []
    silences: list[float] = []
    computed_before = [sum(process.cpu_times()[:2]) for process in neighbours]
    until = time.monotonic() + sec
    while time.monotonic() < until:
        live = [stream for stream in streams if stream.terminal is None]
        for _ in range(4 - len(live)):
            prompt = PROMPTS[len(streams) % len(PROMPTS)]
            streams.append(worker.execute(fresh_id("busy"), prompt, ignore_eos=True, max_tokens=TOKENS))
        time.sleep(0.2)
        assert worker.engine_pid == pid, worker.narrated("engine_lost")
        silences += [time.monotonic() - s.events[-1].at for s in live if s.events and s.terminal is None]
    for stream in streams:
        stream.finished(within_sec=600).assert_whole()
        assert stream.terminal is not None
        assert (stream.terminal.event, len(stream.tokens)) == ("end", TOKENS)
    assert (worker.engine_pid, worker.health()["engine_restarts"]) == (pid, 0)
    computed = [
        sum(p.cpu_times()[:2]) - before for p, before in zip(neighbours, computed_before, strict=True)
    ]
    assert min(computed) > 0.02 * sec, "a neighbour did not compute"
    print(
        f"{sec:.0f} s beside {ENGINES} engines and {BUSY_LOOPS} busy loops, which computed for {sum(computed):.0f} s: "
        f"{len(streams)} streams of {TOKENS} tokens, no restart, the longest silence of a stream {max(silences):.1f} s"
    )


def test_a_worker_on_a_busy_machine_keeps_its_engine(
    worker: RunningWorker, neighbours: list[psutil.Process]
) -> None:
    """For ten minutes; all jobs complete, late. An earlier worker killed a healthy engine every 110 s: such a fault is
    found by 99 of 100 runs."""
    works_beside(worker, neighbours, BUSY_SEC)


@pytest.mark.parametrize("sig", [signal.SIGSTOP, signal.SIGKILL])
def test_an_engine_that_is_stopped_is_found_on_a_busy_machine(
    worker: RunningWorker, neighbours: list[psutil.Process], sig: signal.Signals
) -> None:
    """Patience with starvation does not hide it. Its stream continues with the next engine."""
    assert all(process.is_running() for process in neighbours)
    before = worker.health()["engine_restarts"]
    stream = worker.execute(fresh_id("stopped"), PROMPTS[0], ignore_eos=True, max_tokens=TOKENS)
    stream.tokens_seen(3, within_sec=FOUND_WITHIN_SEC)
    started = time.monotonic()
    worker.signal_engine(sig)
    wait_until(
        lambda: worker.health()["engine_restarts"] > before, within_sec=FOUND_WITHIN_SEC, what="a restart"
    )
    print(f"{sig.name} found after {time.monotonic() - started:.1f} s")
    stream.finished(within_sec=300).assert_whole()
    assert len(stream.tokens) == TOKENS
    at_rest(worker)


def test_an_engine_that_computes_without_end_is_found_on_a_busy_machine(
    neighbours: list[psutil.Process],
) -> None:
    """By the CPU time that it gets. The neighbour's job continues once the looping one is cancelled."""
    assert all(process.is_running() for process in neighbours)
    with running_worker(wait=False) as worker:
        worker.ready(within_sec=300)
        endless = worker.execute(fresh_id("endless"), script(token_ms=1, spin_at=8), max_tokens=20)
        neighbour = worker.execute(fresh_id("neighbour"), script(token_ms=50), max_tokens=100)
        started = time.monotonic()
        wait_until(
            lambda: worker.health()["engine_restarts"] >= 1, within_sec=FOUND_WITHIN_SEC, what="a restart"
        )
        print(f"found after {time.monotonic() - started:.1f} s")
        assert "computed for" in str(worker.narrated("engine_lost"))
        worker.cancel(endless.job_id)
        endless.finished(within_sec=300)
        neighbour.finished(within_sec=600).assert_whole()
        assert len(neighbour.tokens) == 100
