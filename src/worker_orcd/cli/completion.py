"""`worker-orcd completion SHELL`: the script that has a shell complete our commands."""

from typing import Annotated, Literal

import typer
from typer.completion import get_completion_inspect_parameters, shell_complete

PROGRAM = "worker-orcd"
VARIABLE = "_WORKER_ORCD_COMPLETE"
"""By it a shell asks for what could come next, instead of running a command."""


def command(
    ctx: typer.Context,
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish")
    ],
) -> None:
    """Print what has a shell complete our words.

    Commands, options, and the ids of live jobs. In bash and zsh: eval "$(worker-orcd completion bash)"; in
    fish: worker-orcd completion fish | source
    """
    register()
    raise typer.Exit(shell_complete(ctx.find_root().command, {}, PROGRAM, VARIABLE, f"source_{shell}"))


def register() -> None:
    """Make the shells known to typer, which otherwise does so only for options of its own."""
    get_completion_inspect_parameters()
