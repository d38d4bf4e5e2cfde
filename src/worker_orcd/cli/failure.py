"""Failures of commands: one line on standard error, and exit code 1."""

from typing import NoReturn

import typer

from worker_orcd.cli.output import notice


def fail(code: str, message: str) -> NoReturn:
    """Print one line and exit with 1.

    Args:
        code: an error code of the API.
        message: what was required and what was found.
    """
    notice(f"worker-orcd: {code}: {' '.join(message.split())}")
    raise typer.Exit(1)
