"""`worker-orcd completion SHELL`: print the script that makes a shell complete worker-orcd's commands."""

from typing import Annotated, Literal

import typer
from typer.completion import get_completion_inspect_parameters, shell_complete

PROGRAM = "worker-orcd"
VARIABLE = "_WORKER_ORCD_COMPLETE"
"""A shell sets this variable to request completions instead of running a command."""


def command(
    ctx: typer.Context,
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish")
    ],
) -> None:
    """Print a script that makes a shell complete commands, options and ids of live jobs.

    In bash and zsh: eval "$(worker-orcd completion bash)"; in
    fish: worker-orcd completion fish | source
    """
    register()
    raise typer.Exit(shell_complete(ctx.find_root().command, {}, PROGRAM, VARIABLE, f"source_{shell}"))


def register() -> None:
    """Register the shells with typer, which otherwise registers them only with its own completion options."""
    get_completion_inspect_parameters()
