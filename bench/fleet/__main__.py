"""Cancels of jobs on two engines, behind LiteLLM's proxy, plain Ray Serve, and a fleet of ours: missed ones, and times.

python -m bench.fleet [--only FRONT]... [--cancels N] [--json FILE] [--peer PATH]

With `--json`, figures that the file has already are kept and not measured again, so that it can be done in parts.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.beside import peer
from bench.beside.report import quantile
from bench.fleet.cancels import KINDS, enough_tokens, measure
from bench.fleet.fronts import FRONTS
from worker_orcd.settings import available_cores, bundled_model


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="bench-fleet", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=FRONTS, help="this front; may be repeated")
    parser.add_argument(
        "--cancels",
        type=int,
        default=20,
        help="cancels of each kind in decode, and four times as many as in prefill (20)",
    )
    parser.add_argument(
        "--json", type=Path, help="write all figures into this file, beside those that it has"
    )
    parser.add_argument("--peer", type=Path, help="a llama-server that is built already")
    return parser.parse_args()


def conditions() -> str:
    """The machine and the versions."""
    return (
        f"{platform.machine()}, {available_cores()} cores, load {os.getloadavg()[0]:.2f} before; "
        f"{bundled_model().name}, llama-cpp-python {metadata.version(peer.PACKAGE)}, Ray {metadata.version('ray')}; "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())}"
    )


def measured(name: str, program: Path, cancels: int, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The figures of one front, beside those that are known, after each kind of cancel."""
    found = known | {"conditions": conditions()}
    kinds = found.setdefault("kinds", {})
    with FRONTS[name](program) as front:
        found["name"] = front.name
        tokens = enough_tokens(front)
        print(f"{front.name} ({found['conditions']}): requests of {tokens} tokens", flush=True)
        for kind in KINDS.values():
            if kind.name in kinds or (kind.by_request and not front.cancels):
                continue
            figures = measure(front, kind, cancels, tokens)
            print(f"  {kind.name}: {figures}", flush=True)
            kinds[kind.name] = asdict(figures)
            yield found


def table(fronts: dict[str, Any]) -> str:
    """In markdown; ratios are those of p50 to that of the same cancel in a fleet of ours."""
    lines = [
        "| cancel | front | missed | p50, ms | p99, ms | p50 by ours | longest computing after it, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    own = fronts.get("ours", {"kinds": {}})["kinds"]
    for kind in KINDS:
        for front in (fronts[name] for name in FRONTS if name in fronts):
            if (figures := front["kinds"].get(kind)) is None:
                continue
            freed, missed = figures["freed_ms"], figures["missed"]
            p50, p99 = (f"{quantile(freed, share):.0f}" if freed else "-" for share in (0.5, 0.99))
            beside = own.get(kind, {}).get("freed_ms")
            ratio = f"{quantile(freed, 0.5) / quantile(beside, 0.5):.2f}" if freed and beside else "-"
            number = f"{missed} of {missed + len(freed)}"
            longest = f"{figures['longest_sec']:.1f}"
            lines.append(f"| {kind} | {front['name']} | {number} | {p50} | {p99} | {ratio} | {longest} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and show the table."""
    given = arguments()
    program = given.peer or peer.llama_server()
    fronts: dict[str, Any] = {}
    if given.json and given.json.exists():
        fronts = json.loads(given.json.read_text(encoding="utf-8"))
    for name in given.only or FRONTS:
        for found in measured(name, program, given.cancels, fronts.get(name, {})):
            fronts[name] = found
            if given.json:
                given.json.write_text(json.dumps(fronts, indent=1), encoding="utf-8")
    print()
    print(table(fronts))


if __name__ == "__main__":
    main()
