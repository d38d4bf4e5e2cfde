"""The documentation is true: generated pages are current, and names on the other pages exist."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from tools.docs import __main__ as docs
from tools.docs.examples import idle_worker, silent_narrator
from worker_orcd import narration, settings
from worker_orcd.api.app import create_app
from worker_orcd.cli.main import COMMANDS, app
from worker_orcd.jobs.errors import ErrorCode
from worker_orcd.sampling import SAMPLING_FIELDS
from worker_orcd.worker.single import SingleWorker

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
CLIENT_COMMANDS = ("execute", "chat", "cancel", "ps", "logs", "demo", "completion")
OUR_PROGRAMS = re.compile(
    r"^(?:\S*/)?(worker-orcd|make run|python -m worker_orcd\.testing\.serve)(?:\s+(?P<rest>.*))?$"
)


def text_of(page: str) -> str:
    """A page of the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def code_in(page: str) -> list[str]:
    """What stands as code on a page: lines of blocks, and spans within prose."""
    lines: list[str] = []
    prose: list[str] = []
    fenced = False
    for line in text_of(page).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
        else:
            prose.append(line)
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", "\n".join(prose))]


def words_of_our_program(line: str) -> list[str] | None:
    """The words after one of our programs' names, if this line of code runs one."""
    found = OUR_PROGRAMS.match(re.split(r"\s#\s", line)[0].strip())
    if found is None:
        return None
    words = shlex.split(found["rest"] or "")
    if found[1] == "make run":
        words = [inner for word in words for inner in shlex.split(word.removeprefix("ARGS="))]
    return words


@cache
def help_of(command: str) -> str:
    """What `worker-orcd COMMAND --help` says."""
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = CliRunner(env=environment).invoke(app, [command, "--help"])
    assert done.exit_code == 0, f"there is no command {command!r}: {done.output}"
    return done.output


def is_flag_of(command: str, flag: str) -> bool:
    """Whether `worker-orcd COMMAND` takes this flag."""
    if command == "serve" and flag in {option.flag for option in settings.options()}:
        return True
    return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", help_of(command)) is not None


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_generated_pages_are_current() -> None:
    """`make docs` would change nothing."""
    assert docs.stale() == []


def test_check_names_pages_that_are_not_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` exits 1 with the file's name and writes nothing; without it the page is written."""
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.main(["--check"]) == 1
    assert "docs/lifecycle.md" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    page = tmp_path / "docs" / "reference.md"
    page.write_text(page.read_text(encoding="utf-8") + "by hand\n", encoding="utf-8")
    assert docs.main(["--check"]) == 1
    assert "docs/reference.md" in capsys.readouterr().err


def test_making_the_pages_needs_no_inference_code() -> None:
    """They can be made where llama.cpp is not built."""
    program = "import sys; sys.modules['llama_cpp'] = None; from tools.docs.__main__ import stale; stale()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=True)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_flags_on_a_page_exist(page: str) -> None:
    """Every `worker-orcd …` that is shown can be typed."""
    for line in code_in(page):
        words = words_of_our_program(line)
        if words is None:
            continue
        command = words.pop(0) if words and not words[0].startswith("--") else "serve"
        if command != "serve":
            help_of(command)
        for word in words:
            flag = word.split("=")[0]
            if flag.startswith("--"):
                assert is_flag_of(command, flag), f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES)
def test_options_named_on_a_page_exist(page: str) -> None:
    """Every `--option` and every variable in the prose is one of the worker's."""
    flags = {option.flag for option in settings.options()}
    known = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    for span in code_in(page):
        if span.startswith("--"):
            flag = span.split()[0].split("=")[0]
            on = flag.replace("--no-", "--", 1)  # A switch can be turned off.
            assert {flag, on} & flags or any(
                is_flag_of(command, flag) for command in ("fleet", *CLIENT_COMMANDS)
            ), f"{page}: {span}"
    for variable in re.findall(r"WORKER_ORCD_[A-Z_]*[A-Z]", text_of(page)):
        assert variable in {option.variable for option in settings.options()} or variable in known, (
            f"{page}: {variable}"
        )


def test_every_client_command_is_on_the_terminals_page() -> None:
    """Together with what it shows as JSON."""
    page = text_of("docs/terminal.md")
    as_json = page[page.index("## JSON") :]
    for command in CLIENT_COMMANDS:
        assert f"| `worker-orcd {command}" in page
        assert ("--json" in help_of(command)) == (f"| `{command}` |" in as_json)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_what_their_own_help_says(command: str) -> None:
    """The list is shown without importing any of them."""
    assert COMMANDS[command] in " ".join(help_of(command).split())
    assert f"  {command} " in CliRunner().invoke(app, ["--help"]).output


def test_the_list_of_commands_imports_none_of_them() -> None:
    """Nor what they need: a client, a server, log events."""
    program = (
        "import sys; sys.argv = ['worker-orcd', '--help']\n"
        "from worker_orcd.cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'fastapi', 'httpx2', 'rich', 'structlog', 'uvloop', 'numpy'} & sys.modules.keys()\n"
        "    assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("option", SAMPLING_FIELDS)
def test_every_sampling_option_is_on_the_page_for_openai_clients(option: str) -> None:
    """Its section on supported fields names them all."""
    _, _, section = text_of("docs/openai.md").partition("\n## Supported fields\n")
    assert f"`{option}`" in section.partition("\n## ")[0]


def test_every_make_target_on_a_page_exists() -> None:
    """`make something` is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for page in PAGES:
        for line in code_in(page):
            for target in re.findall(r"(?:^|\s)make ([a-z-]+)", line):
                assert target in targets, f"{page}: {line}"


def test_every_error_code_and_action_is_documented() -> None:
    """What a client or an operator may meet stands in the reference."""
    reference = text_of("docs/reference.md")
    for name in [*ErrorCode, *(action.name for action in narration.ACTIONS)]:
        assert f"| `{name}` |" in reference, name


@pytest.mark.parametrize("page", PAGES)
def test_links_on_a_page_lead_somewhere(page: str) -> None:
    """Relative links name a file of the repository, and a heading in it if they say so."""
    for target in re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", text_of(page)):
        assert not urlsplit(target).scheme, f"{page}: {target} is not in the repository"
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.is_file(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page}: {target}"


def test_every_test_that_is_called_a_proof_exists() -> None:
    """Traceability names no test that is not there."""
    named = re.findall(r"`(tests/[^`]+)`", text_of("docs/traceability.md"))
    assert named
    missing = [
        name
        for name in named
        for path, _, function in [name.partition("[")[0].partition("::")]
        if not (ROOT / path).exists()
        or (function and f"def {function}(" not in (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert missing == []


def test_every_source_file_that_is_named_exists() -> None:
    """Paths of modules on the pages lead to files below `src/worker_orcd/`."""
    for page in PAGES:
        for span in code_in(page):
            if re.fullmatch(r"[a-z_]+/[a-z_]+\.py", span) and not span.startswith("tests/"):
                places = (ROOT / "src" / "worker_orcd" / span, ROOT / span)
                assert any(place.is_file() for place in places), f"{page}: {span}"


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/how-a-cancel-travels.md"])
def test_every_method_that_is_named_exists(page: str) -> None:
    """`Worker.cancel`, `_undo`: pages that explain the code use its names, in their diagrams too."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    defined = {name for source in sources for name in re.findall(r"def (_\w+)", source)}
    named = re.findall(r"\b([A-Z][a-z]\w+)\.(\w+)|(?<![\w/.])(_[a-z]\w+)", text_of(page))
    assert named
    for owner, member, private in named:
        if private:
            assert private in defined, f"{page}: {private}"
            continue
        homes = [source for source in sources if re.search(rf"^class {owner}\b", source, re.MULTILINE)]
        assert any(re.search(rf"\b{member}\b", home) for home in homes), f"{page}: {owner}.{member}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_no_machine_but_the_readers_own(page: str) -> None:
    """No host but this one, and no absolute path but the worker's endpoints, where a server keeps it, `/path/to/…`."""
    text = text_of(page)
    for url in re.findall(r"\b[a-z]+://[^\s`'\")>]+", text):
        assert urlsplit(url).hostname in {"127.0.0.1", "localhost"}, f"{page}: {url}"
    api = create_app(SingleWorker(idle_worker()), silent_narrator(), lambda _: None)
    ours = {path.split("/")[1] for path in api.openapi()["paths"]} | {
        "docs",
        "openapi.json",
        "path",
        "etc",
        "opt",
    }
    without_urls = re.sub(r"\b[a-z]+://\S+", "", text)
    for first in re.findall(r"(?<![\w.*>/)}\]`<-])/([A-Za-z_][\w.-]*)", without_urls):
        assert first in ours, f"{page}: /{first}"
