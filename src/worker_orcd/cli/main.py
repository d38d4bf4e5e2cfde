"""The entry point: `worker-orcd [COMMAND]`; without a command it serves.

A command's module is imported only when the command is used, so that `worker-orcd cancel` does not import a web server.
"""

import inspect
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from worker_orcd import __version__, options
from worker_orcd.cli import completion
from worker_orcd.cli.ahead import EngineAhead
from worker_orcd.cli.failure import fail
from worker_orcd.cli.output import line
from worker_orcd.cli.streams import guarded

COMMANDS = {
    "serve": "Load a model and serve it over HTTP.",
    "fleet": "Serve several workers as one, on Ray Serve.",
    "execute": "Run a job and show its text as it is generated.",
    "chat": "Chat with the model.",
    "cancel": "Cancel a job and show its receipt.",
    "ps": "Show the worker and its jobs.",
    "logs": "Follow the worker's log events.",
    "demo": "Cancel three jobs on the bundled model and check each promise.",
    "completion": "Print a script that makes a shell complete commands, options and ids of live jobs.",
}
"""The commands, with the first sentence of their help, so that the list of commands needs no imports."""
_SETTLED = ("serve", "fleet")
"""Commands that take the options of a worker."""
_OF_THE_GROUP = ("--help", "--version")


class _Commands(TyperGroup):
    """The group of commands, which are imported when they are used."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # typer's signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        app = _typer()
        app.command(cmd_name)(_with_settings(cmd_name) if cmd_name in _SETTLED else _function(cmd_name))
        return typer.main.get_command(app)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`worker-orcd --port 9000` is `worker-orcd serve --port 9000`."""
        nothing_yet = not args and not ctx.resilient_parsing  # In a completion, a command may follow.
        if nothing_yet or (args and args[0].startswith("-") and args[0] not in _OF_THE_GROUP):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete commands, or options: those of the group and, without a command, those of serve."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            serve = self.get_command(ctx, "serve")
            found += [item for item in serve.shell_complete(ctx, incomplete) if item.value != "--help"]
        return found

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options of serve, the default command."""
        super().format_help(ctx, formatter)
        serve = self.get_command(ctx, "serve")
        with typer.Context(serve, info_name="[serve]", parent=ctx) as below:
            formatter.write("\nWithout a command, the options are those of serve:\n")
            serve.format_options(below, formatter)


def _typer(**more: Any) -> typer.Typer:
    # Plain text, because typer's boxes cut off names of variables on a terminal with 80 columns.
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **more)


app = _typer(cls=_Commands)


def _show_version(wanted: bool) -> None:
    if wanted:
        line(f"worker-orcd {__version__}")
        raise typer.Exit


@app.callback()
def worker_orcd(
    version: Annotated[  # Handled by its callback.
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """An LLM inference worker whose jobs can always be cancelled: quickly, from anywhere, and provably.

    Without a command, it runs serve.
    """


def main() -> None:
    """Run the command line."""
    with guarded():
        if completion.VARIABLE in os.environ:
            completion.register()
            app(prog_name=completion.PROGRAM)
        else:
            with EngineAhead(sys.argv[1:]) as ahead:
                app(prog_name=completion.PROGRAM, obj=ahead)


def _function(command: str) -> Callable[..., None]:
    function: Callable[..., None] = import_module(f"worker_orcd.cli.{command}").command
    return function


def _with_settings(command: str) -> Callable[..., None]:
    """The command `serve` or `fleet`, with a flag for each field of `Settings`.

    Only the flags that are given are passed on, as text: `Settings` reads the environment and validates values.
    """

    def run(ctx: typer.Context, **given: Any) -> None:
        wanted = {name: value for name, value in given.items() if value is not None and value != []}
        if command == "serve":
            _run(wanted, ctx.obj)
        else:
            _run_fleet(wanted)

    run.__doc__ = COMMANDS[command]
    own = import_module("worker_orcd.cli.fleet").FLAGS if command == "fleet" else {}
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flag)
        for name, flag in own.items()
    ] + [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_flag(option))
        for option in options.table()
    ]
    run.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (context, *parameters)}
    return run


def _flag(option: options.Option) -> Any:
    """typer's description of an option."""
    default = (
        ""
        if option.default in ("none", "generated", "cores", "bundled model", "file's name")
        else f"{option.default}; "
    )
    text = f"{option.description} ({default}{option.variable})"
    if option.kind == "switch":
        decl = f"{option.flag}/{option.flag.replace('--', '--no-', 1)}"
        return Annotated[bool | None, typer.Option(decl, help=text, show_default=False)]
    repeated = option.kind == "values"
    return Annotated[
        list[str] | None if repeated else str | None,
        typer.Option(option.flag, metavar=_metavar(option.requirement), help=text, show_default=False),
    ]


def _metavar(requirement: str) -> str:
    """`a whole number from 1 to 64` → `N`."""
    if requirement.startswith("a whole number"):
        return "N"
    if requirement.startswith("a number"):
        return "SEC"
    if requirement.startswith(("a ", "an ")):
        return requirement.rsplit(maxsplit=1)[-1].upper()
    return requirement.replace(", ", "|").replace(" or ", "|")


def _settings(given: dict[str, Any]) -> Any:
    from pydantic import ValidationError  # noqa: PLC0415

    from worker_orcd import settings  # noqa: PLC0415

    try:
        return settings.Settings(**given)
    except ValidationError as error:
        fail("INVALID_REQUEST", settings.explain(error))


def _run_fleet(given: dict[str, Any]) -> None:
    fleet = import_module("worker_orcd.cli.fleet")
    own = {name: given.pop(name) for name in fleet.FLAGS if name in given}
    fleet.run_fleet(_settings(given), **own)


def _run(given: dict[str, Any], ahead: EngineAhead) -> None:
    options = _settings(given)
    from worker_orcd.supervisor.load_order import loading  # noqa: PLC0415

    early = loading(ahead.take(), options)  # Loads the model while the server is imported.
    from worker_orcd.cli.serve import StartupFailed, serve  # noqa: PLC0415

    try:
        code = serve(options, early=early)
    except StartupFailed as error:
        fail(error.code, str(error))
    # Everything is closed. Finalizing the interpreter would take a part of the five seconds for an exit.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
