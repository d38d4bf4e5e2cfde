"""A template that escapes Jinja's sandbox can only compute and answer."""

import json
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chat_templates.conversations import BOS, CONVERSATIONS, EOS, FOLDER, said
from worker_orcd.engine.templates.renderer import Renderer
from worker_orcd.engine.templates.source import Source, TemplateFault
from worker_orcd.engine.templates.special_tokens import Piece
from worker_orcd.engine.templates.template import ChatTemplate
from worker_orcd.testing.harness import wait_until

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is for x86-64")

DOORS = """
import ctypes, fcntl, json, os, signal, socket, sys
from worker_orcd.engine.templates import system_calls
libc, ours = ctypes.CDLL(None, use_errno=True), socket.socketpair()[0]
def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
doors = {
    "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "look whether a file is there": lambda: os.stat("/etc/passwd"),
    "list a folder": lambda: os.listdir("/"),
    "write a file": lambda: os.open("/dev/null", os.O_WRONLY),
    "memory file": lambda: os.memfd_create("m"),
    "reach the network": lambda: socket.socket(),
    "make a local socket": lambda: socket.socketpair(),
    "signal another process": lambda: os.kill(os.getppid(), 0),
    "have another process signalled": lambda: fcntl.fcntl(ours, fcntl.F_SETOWN, os.getppid()),
    "read another process": lambda: call(310, os.getppid(), 0, 0, 0, 0, 0),
    "queue system calls": lambda: call(425, 1, ctypes.create_string_buffer(256)),
    "limit another process": lambda: call(302, os.getppid(), 7, 0, ctypes.create_string_buffer(16)),
    "run a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "fork": lambda: os.fork() or os._exit(0),
}
for step in sys.argv[1:]:
    getattr(system_calls, step)()
opened = {}
for name, door in doors.items():
    try:
        door()
        opened[name] = None
    except OSError as error:
        opened[name] = error.errno
os.write(1, json.dumps(opened).encode())
"""
EPERM = 1
FILTERED = "2"
"""`Seccomp` in /proc/PID/status, when there is a filter."""


def tried(*steps: str) -> dict[str, int | None]:
    """Each system call that is tried, and its error; None if it succeeds."""
    done = subprocess.run(
        [sys.executable, "-c", DOORS, *steps], stdout=subprocess.PIPE, timeout=60, check=True
    )
    opened: dict[str, int | None] = json.loads(done.stdout)
    return opened


def test_a_rendering_process_reaches_nothing() -> None:
    """No files, network, programs or other processes. Without the filter nearly all of these calls succeed."""
    open_without = {name for name, error in tried().items() if error is None}
    assert {"read a file", "list a folder", "reach the network", "run a program", "fork"} <= open_without
    assert set(tried("refuse_all_but_serving", "refuse_all_but_rendering").values()) == {EPERM}


def test_the_renderer_itself_can_only_fork() -> None:
    """It compiles the template, and Jinja computes constants then."""
    errors = tried("refuse_all_but_serving")
    assert {name for name, error in errors.items() if error != EPERM} == {
        "fork",
        "have another process signalled",
    }


def filters(process: psutil.Process) -> str:
    """Whether a process is filtered."""
    lines = Path(f"/proc/{process.pid}/status").read_text("ascii").splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Seccomp:"))


def test_the_renderer_and_its_children_are_filtered() -> None:
    """While they run a template."""
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = f"{{% if 'long' in messages[0].content %}}{endless}{{% endif %}}{{{{ messages[0].content }}}}"
    renderer = Renderer(Source(template, BOS, EOS))
    assert renderer._server.pid is not None
    process = psutil.Process(renderer._server.pid)

    def render() -> None:
        with pytest.raises(TemplateFault):
            renderer.render({"messages": [said("user", "long")]})

    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    wait_until(lambda: bool(process.children()), within_sec=30, what="a child that renders")
    assert [filters(one) for one in (process, *process.children())] == [FILTERED, FILTERED]
    thread.join(60)
    renderer.close()


def outcomes(render: Callable[[dict[str, Any]], Sequence[Piece]]) -> list[Sequence[Piece] | None]:
    """Each conversation as rendered; None if the template refuses it."""
    found: list[Sequence[Piece] | None] = []
    for conversation in CONVERSATIONS:
        try:
            found.append(tuple(render({"messages": conversation, "add_generation_prompt": True})))
        except TemplateFault:
            found.append(None)
    return found


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if number % 7 == 0 else [pytest.mark.nightly])
        for number, path in enumerate(sorted(FOLDER.glob("*.jinja")))
    ],
    ids=lambda path: path.stem,
)
def test_published_templates_render_behind_the_filter(path: Path) -> None:
    """As they do without it. Some write the date, which may change meanwhile."""
    source = Source(path.read_text("utf-8"), BOS, EOS)
    before = outcomes(ChatTemplate(source).render)
    renderer = Renderer(source)
    behind = outcomes(renderer.render)
    renderer.close()
    assert behind in (before, outcomes(ChatTemplate(source).render))
