"""How every command fails: one clear line on stderr, and exit code 1."""

from typing import NoReturn

import typer

from worker_orcd.cli.output import notice


def fail(code: str, message: str) -> NoReturn:
    """Leave with one line.

    Args:
        code: an error code of the contract.
        message: what was required against what was there.
    """
    notice(f"worker-orcd: {code}: {' '.join(message.split())}")
    raise typer.Exit(1)
