"""Workloads about speed: tokens per second, gaps, starts, and what a token costs (issue: full speed)."""

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from bench.beside.client import Stream, ask, read
from bench.beside.report import quantile
from bench.beside.servers import Bench, Server, launched, our_command
from worker_orcd.child_process import free_port, wait_until
from worker_orcd.testing.harness import running_worker
from worker_orcd.testing.trials import decoding, prefilling, stop_trials

DECODED = 96
"""Tokens of each stream in a throughput run."""
BARE_LOOP = Path(__file__).parents[1] / "bare_loop.py"
LIST = {"type": "array", "minItems": 40, "items": {"type": "integer", "minimum": 0, "maximum": 999}}
"""A JSON Schema for constrained output: long enough that the stream does not end before it is measured."""


def _rate(streams: list[Stream]) -> float:
    """Tokens per second of all streams together, while all of them decode."""
    read(streams, lambda: False)
    begin = max(stream.arrivals[0] for stream in streams)
    end = min(stream.arrivals[-1] for stream in streams)
    return sum(begin < at <= end for stream in streams for at in stream.arrivals) / (end - begin)


def _bare(bench: Bench, *what: object) -> float:
    """Tokens per second of a loop over the same llama.cpp calls, with both servers stopped."""
    with bench.nobody():
        command = [sys.executable, str(BARE_LOOP), *map(str, what), "0"]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def decode(bench: Bench, number: int, streams: int) -> dict[str, float]:
    """Decode tokens per second of so many streams together."""

    def measure(server: Server) -> dict[str, float]:
        prompts = [bench.text(f"decode {streams} {n}", number, 30) for n in range(streams)]
        return {"": _rate([server.complete(prompt, DECODED) for prompt in prompts])}

    return bench.in_turns(number, measure) | {"bare_loop": _bare(bench, "decode", streams, DECODED)}


def prefill(bench: Bench, number: int) -> dict[str, float]:
    """Prompt tokens per second of one prompt of 2,000, its first token included."""

    def measure(server: Server) -> dict[str, float]:
        stream = server.complete(bench.text("prefill", number, 2000), 1)
        return {"": 2000 / stream.first_token_ms() * 1000}

    return bench.in_turns(number, measure) | {"bare_loop": _bare(bench, "prefill")}


def constrained(bench: Bench, number: int) -> dict[str, float]:
    """Decode tokens per second of one answer that a JSON Schema constrains, beside a free one."""
    shape = {"type": "json_schema", "json_schema": {"name": "list", "schema": LIST}}

    def measure(server: Server) -> dict[str, float]:
        asked = [{"role": "user", "content": bench.text("constrained", number, 30)}]
        free = _rate([server.chat(asked, DECODED)])
        body: dict[str, Any] = {"messages": asked, "max_tokens": DECODED, "temperature": 0}
        return {
            "": _rate([server.stream("/v1/chat/completions", response_format=shape, **body)]),
            "free": free,
        }

    return bench.in_turns(number, measure)


def gaps(bench: Bench, number: int) -> dict[str, float]:
    """Three streams decode while a prompt of 2,000 tokens arrives: their largest gap, and its first token."""

    def measure(server: Server) -> dict[str, float]:
        streams = [server.complete(bench.text(f"gap {n}", number, 30), 1500) for n in range(3)]
        read(streams, lambda: all(len(stream.arrivals) >= 24 for stream in streams))
        late = server.complete(bench.text("late", number, 2000), 1)
        read([*streams, late], lambda: bool(late.arrivals))
        # Otherwise the gap of a server that computes nothing beside the prompt would not count.
        read(streams, lambda: all(stream.arrivals[-1] > late.arrivals[0] for stream in streams))
        before, during = [], []
        for stream in streams:
            for a, b in zip(stream.arrivals[3:], stream.arrivals[4:], strict=False):
                (before if b < late.sent_at else during).append((b - a) * 1000)
            stream.close()
        figures = {"": max(during), "normal_gap": statistics.median(before)}
        return figures | {"first_token": (late.arrivals[0] - late.sent_at) * 1000}

    return bench.in_turns(number, measure)


def after_cancel(bench: Bench, number: int) -> dict[str, float]:
    """The first token of a short request after a 2,000-token prefill was closed; beside an idle server."""

    def measure(server: Server) -> dict[str, float]:
        idle = server.complete(bench.text("idle", number, 8), 1).finished().first_token_ms()
        server.idle()
        long = server.complete(bench.text("cancelled", number, 2000), 1)
        time.sleep(0.3)
        long.close()
        wait = server.complete(bench.text("after", number, 8), 1).finished().first_token_ms()
        return {"": wait, "idle": idle, "later": wait - idle}

    return bench.in_turns(number, measure)


def stops(bench: Bench, number: int) -> dict[str, float]:
    """From a cancel's acceptance to the end of computing, of 25 jobs that decode and 25 in their prefill."""
    with bench.only(bench.ours):
        receipts = [
            receipt
            for begin in (decoding, prefilling)
            for receipt in stop_trials(bench.worker, begin, 25, f"{begin.__name__}-{number}", time.sleep)
        ]
    took = [receipt["stopped_ms"] for receipt in receipts]
    return {"ours": quantile(took, 0.99), "largest": max(took)}


def start(bench: Bench, number: int) -> dict[str, float]:
    """From starting the process to `GET /health` 200, in seconds."""
    del number
    with bench.nobody():
        port = free_port()
        began = time.perf_counter()
        with launched(our_command(port), port):
            return {"ours": time.perf_counter() - began}


def help_text(bench: Bench, number: int) -> dict[str, float]:
    """`worker-orcd --help`, in seconds."""
    del number
    with bench.nobody():
        began = time.perf_counter()
        subprocess.run([our_command(0)[0], "--help"], check=True, capture_output=True)
        return {"ours": time.perf_counter() - began}


def _kill_engine(bench: Bench) -> float:
    pid = bench.worker.engine_pid
    os.kill(pid, signal.SIGKILL)
    return time.perf_counter()


def killed_decoding(bench: Bench, number: int) -> dict[str, float]:
    """The engine is killed while a stream decodes: until the stream's next token, in seconds."""
    ours = bench.ours
    with bench.only(ours):
        stream = ours.complete(bench.text("killed", number, 30), 400)
        read([stream], lambda: len(stream.arrivals) >= 10)
        at = _kill_engine(bench)
        read([stream], lambda: stream.arrivals[-1] > at + 0.05)
        wait = stream.arrivals[-1] - at
        stream.close()
    return {"ours": wait}


def killed_prefilling(bench: Bench, number: int) -> dict[str, float]:
    """The engine is killed 3,000 tokens into a prefill: until it is back there; beside its load time plus a second."""
    ours = bench.ours
    with bench.only(ours):
        began = _kill_engine(bench)
        _restarted(bench)
        load = time.perf_counter() - began
        name = f"killed-{time.time_ns()}"
        stream = bench.worker.execute(
            name, bench.text("deep", number, 6000), template="none", max_tokens=1, progress=True
        )

        def depth() -> int:
            reported = [event.data["processed"] for event in stream.events if event.event == "progress"]
            return max(reported[seen:], default=0)

        seen = 0
        wait_until(lambda: depth() >= 3000, within_sec=240, what="3,000 tokens of the prompt")
        began = _kill_engine(bench)
        _restarted(bench)
        seen = sum(event.event == "progress" for event in stream.events)
        wait_until(lambda: depth() >= 3000 or stream.tokens, within_sec=240, what="the prefill to be back")
        back = time.perf_counter() - began
        bench.worker.cancel(name)
        stream.finished()
    return {"ours": back, "load_and_1_s": load + 1}


def _restarted(bench: Bench) -> None:
    port = bench.ours.port
    wait_until(
        lambda: ask(port, "GET", "/health")[0] != 200, within_sec=5, what="the engine's death to be noticed"
    )
    wait_until(lambda: ask(port, "GET", "/health")[0] == 200, within_sec=60, what="the next engine")


def cpu(bench: Bench, number: int) -> dict[str, float]:
    """CPU of front and engine in µs a token: 16 streams of the scripted engine, whose tokens take no time."""
    del number
    with bench.nobody(), running_worker("scripted") as worker:
        front, engine = psutil.Process(worker.process.pid), psutil.Process(worker.engine_pid)
        before = [sum(process.cpu_times()[:2]) for process in (front, engine)]
        body = {"prompt": '{"token_ms": 0}', "template": "none", "ignore_eos": True, "max_tokens": 2000}
        streams = [Stream(worker.port, "/execute", {"job_id": f"cpu-{n}", **body}) for n in range(16)]
        read(streams, lambda: False)
        tokens = sum(len(stream.arrivals) for stream in streams)
        after = [sum(process.cpu_times()[:2]) for process in (front, engine)]
    used = [(b - a) * 1e6 / tokens for a, b in zip(before, after, strict=True)]
    return {"ours": used[0], "engine": used[1]}
