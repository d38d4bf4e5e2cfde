"""Workloads about prompts that were computed before, or by another request (issue: nothing is computed twice)."""

import json
import statistics
import time
from functools import partial

from bench.beside.client import Stream, ask, read
from bench.beside.servers import Bench, Server

KEY_SEC = 0.06
"""Between two keystrokes of a fast typist."""
KEYS = 20
FILE = 1500
"""Tokens of the file that is edited."""
MAX_TRIES = 8


def conversation(bench: Bench, number: int) -> dict[str, float]:
    """Six turns, 250 tokens asked and 60 answered in each: the mean first token of turns 4 to 6."""

    def measure(server: Server) -> dict[str, float]:
        messages: list[dict[str, str]] = []
        waits = []
        for turn in range(6):
            messages.append({"role": "user", "content": bench.text(f"turn {turn}", number, 250)})
            answer = server.chat(messages, 60).finished()
            waits.append(answer.first_token_ms())
            messages.append({"role": "assistant", "content": answer.text})
        return {"": statistics.mean(waits[3:])}

    return bench.in_turns(number, measure)


def _file(bench: Bench, name: str, number: int) -> tuple[str, str]:
    return bench.text(name, number, FILE), bench.text(f"{name} typed", number, KEYS)


def _warm(server: Server, text: str) -> float:
    """First token of one more request for a text of which all but the last word is warm, on an idle server."""
    server.idle()
    server.complete(text, 1).finished()
    server.idle()
    return server.complete(text + " now", 1).finished().first_token_ms()


def _type(server: Server, text: str, typed: str) -> float:
    """A request for each keystroke, each of which closes the last one; from the last key to its first token."""
    due = time.perf_counter()
    stream = server.complete(text + typed[:2], 48)
    for length in range(3, KEYS + 2):
        due += KEY_SEC
        time.sleep(max(0.0, due - time.perf_counter()))
        stream.close()
        stream = server.complete(text + typed[:length], 48)
    wait = stream.first_token_ms()
    stream.close()
    return wait


def editor(bench: Bench, number: int) -> dict[str, float]:
    """A file that was opened (one request) before the typing begins; beside the same on a warm idle server."""

    def measure(server: Server) -> dict[str, float]:
        text, typed = _file(bench, "editor", number)
        server.complete(text, 1).finished()
        server.idle()
        figures = {"": _type(server, text, typed)}
        return figures | {"warm_idle": _warm(server, text + typed[: KEYS + 1])}

    return bench.in_turns(number, measure)


def editor_cold(bench: Bench, number: int) -> dict[str, float]:
    """The same with a file of which nothing is known when the typing begins."""

    def measure(server: Server) -> dict[str, float]:
        return {"": _type(server, *_file(bench, "cold editor", number))}

    return bench.in_turns(number, measure)


def agents(bench: Bench, number: int) -> dict[str, float]:
    """Eight agents at once with one system prompt of 1,200 tokens: until all have a first token; beside one prefill."""

    def measure(server: Server) -> dict[str, float]:
        alone = server.chat(_agent(bench, "alone", number, 0), 1).finished().first_token_ms()
        server.idle()
        streams = [server.chat(_agent(bench, "agents", number, n), 16) for n in range(8)]
        read(streams, lambda: all(stream.arrivals for stream in streams))
        wait = max(stream.arrivals[0] for stream in streams) - streams[0].sent_at
        for stream in streams:
            stream.close()
        return {"": wait * 1000, "one_prefill": alone}

    return bench.in_turns(number, measure)


def _agent(bench: Bench, name: str, number: int, agent: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": bench.text(name, number, 1200)},
        {"role": "user", "content": bench.text(f"{name} {agent}", number, 12)},
    ]


def retries(bench: Bench, number: int) -> dict[str, float]:
    """A client that gives up after 0.6 of its prompt's prefill, and sends the same again."""

    def measure(server: Server) -> dict[str, float]:
        took = server.complete(bench.text("known", number, FILE), 1).finished().first_token_ms()
        before = server.idle().computed()
        prompt = bench.text("retried", number, FILE)
        tries, answered = 0, False
        while not answered and tries < MAX_TRIES:
            tries += 1
            stream = server.complete(prompt, 1)
            answered = read([stream], partial(_has_text, stream), took * 0.6 / 1000)
            stream.close()
        server.idle()
        return {"": tries if answered else float("inf"), "computed": (server.computed() - before) / FILE}

    return bench.in_turns(number, measure)


def _has_text(stream: Stream) -> bool:
    return bool(stream.arrivals)


def barge_in(bench: Bench, number: int) -> dict[str, float]:
    """An answer is cancelled after 20 tokens, another question asked with the same history; beside an idle server."""

    def measure(server: Server) -> dict[str, float]:
        history = [
            {"role": role, "content": bench.text(f"barge {turn}", number, 300)}
            for turn, role in enumerate(("user", "assistant", "user", "assistant"))
        ]

        def asks(question: str) -> list[dict[str, str]]:
            return [*history, {"role": "user", "content": bench.text(question, number, 30)}]

        first = server.chat(asks("first"), 200)
        read([first], lambda: len(first.arrivals) >= 20)
        first.close()
        wait = server.chat(asks("second"), 1).finished().first_token_ms()
        server.idle()
        return {"": wait, "warm_idle": server.chat(asks("third"), 1).finished().first_token_ms()}

    return bench.in_turns(number, measure)


def urgent(bench: Bench, number: int) -> dict[str, float]:
    """An urgent job of 30 tokens while a prompt of 5,000 is computed; beside the same on an idle worker, plus a step.

    Only ours has priorities. The step is the longest of the victim's before the urgent job came.
    """
    ours = bench.ours
    with bench.only(ours):
        idle = ours.complete(bench.text("urgent idle", number, 30), 1).finished().first_token_ms()
        before = ours.idle().computed()
        name = f"victim-{time.time_ns()}"
        victim = Stream(
            ours.port,
            "/execute",
            {
                "job_id": name,
                "prompt": bench.text("victim", number, 5000),
                "template": "none",
                "max_tokens": 1,
            },
        )
        step_ms = _longest_step_ms(ours, name, 1500)
        wait = ours.complete(bench.text("urgent", number, 30), 1, priority=-10).finished().first_token_ms()
        victim.finished()
        computed = ours.idle().computed() - before - 30
    return {"ours": wait, "idle_and_a_step": idle + step_ms, "idle": idle, "victim": computed / 5000}


def _longest_step_ms(server: Server, job_id: str, until: int) -> float:
    """Wait until a job has computed so many prompt tokens. Returns the longest time between two steps' ends."""
    known, since, longest = _processed(server, job_id), time.perf_counter(), 0.0
    while known < until:
        time.sleep(0.005)
        if (now := _processed(server, job_id)) != known:
            ended = time.perf_counter()
            longest, since = max(longest, (ended - since) * 1000 if known else 0.0), ended
            known = now
    return longest


def _processed(server: Server, job_id: str) -> int:
    """Prompt tokens of a job that are computed so far."""
    status, body = ask(server.port, "GET", f"/jobs/{job_id}")
    return int(json.loads(body)["prompt_tokens_processed"] or 0) if status == 200 else 0


def supersedes(bench: Bench, number: int) -> dict[str, float]:
    """The editor at 15 keys a second whose requests supersede each other; beside a warm idle worker."""
    ours = bench.ours
    with bench.only(ours):
        text, typed = _file(bench, "superseding", number)
        ours.complete(text, 1).finished()
        ours.idle()
        streams: list[Stream] = []
        for length in range(KEYS):
            streams.append(ours.complete(text + typed[: length + 2], 48, supersedes=f"editor-{number}"))
            if length < KEYS - 1:
                time.sleep(1 / 15)
        wait = streams[-1].first_token_ms()
        for stream in streams:
            stream.close()
        warm = _warm(ours, text + typed[: KEYS + 1])
    return {"ours": wait, "warm_idle": warm}
