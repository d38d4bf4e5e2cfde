"""All workloads, by name, and the lines of the table that each of them fills."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.beside import crowds, prefixes, speed
from bench.beside.report import Row
from bench.beside.servers import Bench


@dataclass(frozen=True, slots=True)
class Workload:
    """What is run in each round, and the rows that show its figures."""

    run: Callable[[Bench, int], dict[str, float]]
    rows: tuple[Row, ...]


WORKLOADS = {
    "conversation": Workload(
        prefixes.conversation,
        (Row("conversation of six turns: first token of turns 4 to 6, ms", target=1.0),),
    ),
    "editor": Workload(
        prefixes.editor,
        (
            Row("editor, 1,500-token file: last key to first token, ms", beside="ours_warm_idle", target=1.2),
            Row("the same", target=0.05),
        ),
    ),
    "editor-cold": Workload(prefixes.editor_cold, (Row("the same, file never seen before the typing, ms"),)),
    "supersedes": Workload(
        prefixes.supersedes,
        (Row("editor with supersedes, 15 keys/s, ms", beside="warm_idle", target=1.1),),
    ),
    "agents": Workload(
        prefixes.agents,
        (
            Row(
                "eight agents, one 1,200-token system prompt: all first tokens, ms",
                beside="ours_one_prefill",
                target=1.3,
            ),
            Row("the same"),
        ),
    ),
    "retries": Workload(
        prefixes.retries,
        (
            Row("timeout of 0.6 of the prefill: answered at try", beside=None, target=2),
            Row("the same, llama-server", "peer", None),
            Row("prompt tokens computed, as a share of the prompt", "ours_computed", None, 1.1),
            Row("the same, llama-server (counts whole prompts only)", "peer_computed", None),
        ),
    ),
    "barge-in": Workload(
        prefixes.barge_in,
        (
            Row("barge-in: first token of the next answer, ms", beside="ours_warm_idle", target=1.2),
            Row("the same"),
        ),
    ),
    "urgent": Workload(
        prefixes.urgent,
        (
            Row(
                "urgent job beside a 5,000-token prefill: first token, ms",
                beside="idle_and_a_step",
                target=1.0,
            ),
            Row("its victim: prompt tokens computed, as a share of its prompt", "victim", None, 1.02),
        ),
    ),
    "after-cancel": Workload(
        speed.after_cancel,
        (
            Row(
                "first token after a cancelled prefill: later than on an idle worker by, ms",
                "ours_later",
                None,
                50,
            ),
            Row("first token after a cancelled prefill, ms"),
        ),
    ),
    "stops": Workload(
        speed.stops,
        (
            Row("cancel accepted to stopped: 99 of 100, ms", beside=None, target=20),
            Row("the largest, ms", "largest", None, 100, worst=True),
        ),
    ),
    "killed-prefill": Workload(
        speed.killed_prefilling,
        (Row("engine killed 3,000 tokens into a prefill: back there, s", beside="load_and_1_s", target=1.0),),
    ),
    "killed-decode": Workload(
        speed.killed_decoding, (Row("engine killed: its stream's next token, s", beside=None, target=0.7),)
    ),
    **{
        f"decode-{streams}": Workload(
            partial(speed.decode, streams=streams),
            (
                Row(f"decode, {streams} streams, tokens/s", target=1.0, at_least=True),
                Row("the same", beside="bare_loop", target=0.95, at_least=True),
            ),
        )
        for streams in (1, 4, 16)
    },
    "prefill": Workload(
        speed.prefill,
        (
            Row("prefill alone, 2,000 tokens, tokens/s", beside="bare_loop", target=0.95, at_least=True),
            Row("the same"),
        ),
    ),
    "gaps": Workload(
        speed.gaps,
        (
            Row("3 streams beside a 2,000-token prompt: largest gap, ms", beside="ours_normal_gap", target=3),
            Row("the same"),
            Row("the prompt's first token, ms", "ours_first_token", "peer_first_token", 1.2),
        ),
    ),
    "constrained": Workload(
        speed.constrained,
        (
            Row("constrained decode (JSON Schema), tokens/s", beside="ours_free"),
            Row("the same"),
        ),
    ),
    "cpu": Workload(
        speed.cpu,
        (
            Row("CPU a token at 16 streams, saturated: front, µs", beside=None, target=30),
            Row("the same: engine's Python, µs", "engine", None, 30),
        ),
    ),
    **{
        f"open-{streams}": Workload(
            partial(crowds.crowd, streams=streams),
            (
                Row(f"{streams:,} open streams: a cancel, 99 of 100, ms", beside=None, target=100),
                Row("the same: its median, ms", "median", None),
                Row("the same: memory of the front for each, KiB", "memory", None),
            ),
        )
        for streams in (1000, 10_000)
    },
    "start": Workload(speed.start, (Row("process start to ready, s", beside=None, target=1.0),)),
    "help": Workload(speed.help_text, (Row("worker-orcd --help, s", beside=None, target=0.25),)),
}
