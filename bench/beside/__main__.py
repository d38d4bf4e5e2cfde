"""The worker beside llama-server: the same requests in turns, and whether the targets are met.

python -m bench.beside [--only NAME]... [--rounds N] [--json FILE] [--peer PATH | --no-peer]
"""

import argparse
import json
import os
import platform
import secrets
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from bench.beside import peer
from bench.beside.report import line, table
from bench.beside.servers import Bench, both, our_options, peer_command
from bench.beside.workloads import WORKLOADS
from worker_orcd.settings import available_cores, bundled_model


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="bench-beside", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=WORKLOADS, help="this workload; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each workload (5)")
    parser.add_argument("--json", type=Path, help="write all figures and the table into this file")
    parser.add_argument("--peer", type=Path, help="a llama-server that is built already")
    parser.add_argument("--no-peer", action="store_true", help="without llama-server")
    return parser.parse_args()


def conditions(program: Path | None) -> dict[str, str]:
    """The machine, the versions and the options of both servers."""
    ours = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in our_options().items())
    theirs = [word for word in peer_command(Path("llama-server"), 0)[1:] if word not in ("--port", "0")]
    theirs[1] = bundled_model().name
    return {
        "machine": f"{platform.machine()}, {available_cores()} cores, load {os.getloadavg()[0]:.2f} before",
        "versions": f"Python {platform.python_version()}, llama-cpp-python {metadata.version(peer.PACKAGE)}",
        "worker-orcd": f"--model {bundled_model().name} {ours}",
        "llama-server": " ".join(theirs) if program else "left out",
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def measure(bench: Bench, names: list[str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """The figures of each workload's rounds. One that fails is reported and left out; the others are still measured."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            began = time.perf_counter()
            try:
                figures[name].append(WORKLOADS[name].run(bench, number))
            except (OSError, RuntimeError, TimeoutError, LookupError) as error:
                print(f"round {number + 1}: {name} FAILED: {type(error).__name__}: {error}", flush=True)
                continue
            found = "  ".join(f"{what} {value:.4g}" for what, value in figures[name][-1].items())
            print(f"round {number + 1}: {name} ({time.perf_counter() - began:.0f} s): {found}", flush=True)
    return figures


def main() -> None:
    """Measure, show the table, and write it down."""
    given = arguments()
    names = given.only or list(WORKLOADS)
    program = None if given.no_peer else given.peer or peer.llama_server()
    known = conditions(program)
    for name, value in known.items():
        print(f"{name}: {value}")
    with both(program, secrets.token_hex(8)) as bench:
        figures = measure(bench, names, given.rounds)
    lines = [line(row, figures[name]) for name in names for row in WORKLOADS[name].rows]
    print("\nmedians (smallest to largest); ratios are those of each round\n")
    print(table(lines))
    if given.json:
        result = {"conditions": known, "rounds": figures, "lines": [asdict(each) for each in lines]}
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
