"""`--json-schema` and `--grammar` of the commands that generate."""

import json
from pathlib import Path

import pytest

from tests.terminal import run
from worker_orcd.testing.harness import RunningWorker


@pytest.mark.parametrize("command", [["execute", "Say something."], ["chat"]])
def test_a_files_schema_or_grammar_constrains_the_output(
    worker: RunningWorker, tmp_path: Path, command: list[str]
) -> None:
    """The scripted engine's own text would be another one."""
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text(json.dumps({"const": "größe"}), encoding="utf-8")
    grammar.write_text('root ::= "a"{5}', encoding="utf-8")
    asked = "hi\n" if command == ["chat"] else ""
    said = run(*command, "--json-schema", str(schema), worker=worker, stdin=asked)
    assert said.stdout.strip() == '"größe"'
    assert run(*command, "--grammar", str(grammar), worker=worker, stdin=asked).stdout.strip() == "aaaaa"


@pytest.mark.parametrize(
    ("option", "content", "reason"),
    [
        ("--json-schema", None, "No such file"),
        ("--json-schema", b"{", "schema"),
        ("--grammar", b"\xff", "utf-8"),
        ("--grammar", b"root ::= nothing", "nothing"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    worker: RunningWorker, tmp_path: Path, option: str, content: bytes | None, reason: str
) -> None:
    """The exit code is 1."""
    file = tmp_path / "schema"
    if content is not None:
        file.write_bytes(content)
    result = run("execute", "x", option, str(file), worker=worker)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("worker-orcd: INVALID_REQUEST: ")
    assert reason in line
