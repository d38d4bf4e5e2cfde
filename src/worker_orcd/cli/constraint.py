"""Options of `execute` and `chat` that constrain the output: files with a JSON Schema or a grammar."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from worker_orcd.cli.failure import fail

SchemaFile = Annotated[
    Path | None,
    typer.Option(
        "--json-schema", metavar="FILE", help="the output is JSON that matches the JSON Schema in this file"
    ),
]
GrammarFile = Annotated[
    Path | None,
    typer.Option("--grammar", metavar="FILE", help="the output matches the grammar in this file, in GBNF"),
]


def constraint_in(schema: Path | None, grammar: Path | None) -> dict[str, Any]:
    """The request fields for these files. An unreadable file ends the command."""
    fields: dict[str, Any] = {}
    try:
        if schema is not None:
            fields["json_schema"] = json.loads(schema.read_text(encoding="utf-8"))
        if grammar is not None:
            fields["grammar"] = grammar.read_text(encoding="utf-8")
    except OSError as error:
        fail("INVALID_REQUEST", f"{error.filename}: {error.strerror}")
    except (ValueError, RecursionError) as error:
        fail("INVALID_REQUEST", f"{schema if not fields else grammar}: {error}")
    return fields
