"""The renderer's processes enforce their limits on any template. Each template shows the need for one limit."""

import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.chat_templates.conversations import BOS, EOS, said
from worker_orcd.engine.current_prompt import CurrentPrompt
from worker_orcd.engine.templates import limits
from worker_orcd.engine.templates.renderer import Renderer
from worker_orcd.engine.templates.source import Source, TemplateFault
from worker_orcd.testing.harness import wait_until

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = (
    # Not a constant: Jinja computes those when it compiles.
    "{% set one = messages | length %}{% for m in messages %}"
    "{% if 'time' in m.content %}" + ENDLESS + "{% endif %}"
    "{% if 'power' in m.content %}{{ 7 ** (9 ** (9 ** (9 * one))) }}{% endif %}"
    "{% if 'lipsum' in m.content %}{{ lipsum(n=100000 * one) }}{% endif %}"
    "{% if 'batch' in m.content %}{{ 'ab' | batch(10 ** 9 * one, 'x') | list }}{% endif %}"
    "{% if 'slice' in m.content %}{{ 'ab' | slice(10 ** 10 * one) | list }}{% endif %}"
    "{% if 'wrap' in m.content %}{{ ('ab ' * (one * 10000000)) | wordwrap(1) }}{% endif %}"
    "{% if 'indent' in m.content %}{{ [[[[[[one]]]]]] | tojson(indent=10 ** 9) }}{% endif %}"
    "{% if 'double' in m.content %}{% set ns = namespace(t='a') %}"
    "{% for i in range(99) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{% endif %}"
    "{% if 'repeat' in m.content %}{{ 'a' * (one * 10 ** 9) }}{% endif %}"
    "{% if 'format' in m.content %}{{ '{:>1000000000}'.format(m.content) }}{% endif %}"
    "{% if 'center' in m.content %}{{ m.content.center(10 ** 9) }}{% endif %}"
    "{% if 'write' in m.content %}{% for i in range(99999) %}{{ 'a' * (one * 1000) }}{% endfor %}{% endif %}"
    "<{{ m.content }}>{% endfor %}"
)


def source(template: str) -> Source:
    """A model's chat template."""
    return Source(template, BOS, EOS)


def rendered(renderer: Renderer, content: str) -> str:
    """A conversation of one message."""
    return "".join(piece.text for piece in renderer.render({"messages": [said("user", content)]}))


@pytest.fixture(scope="module")
def hostile() -> Iterator[Renderer]:
    """A renderer with a template that is hostile on a certain word."""
    renderer = Renderer(source(HOSTILE))
    yield renderer
    renderer.close()


@pytest.mark.parametrize(
    "word",
    [
        *(
            "time",
            "power",
            "lipsum",
            "batch",
            "slice",
            "wrap",
            "indent",
            "double",
            "repeat",
            "format",
        ),
        *("center", "write"),
    ],
)
def test_a_template_that_takes_too_much_fails_on_its_prompt_alone(hostile: Renderer, word: str) -> None:
    """However it uses its time or memory; the next prompt is rendered."""
    with pytest.raises(TemplateFault, match=r"takes too|writes too much|MemoryError|OverflowError"):
        rendered(hostile, word)
    assert rendered(hostile, "hi") == "<hi>"


def test_a_slow_prompt_holds_up_no_other(hostile: Renderer) -> None:
    """It is reported as slow, and others are rendered in parallel."""
    slow, over, ended = threading.Event(), threading.Event(), threading.Event()
    in_hand = CurrentPrompt()
    in_hand.slow = lambda is_slow: (slow if is_slow else over).set()

    def render() -> None:
        with pytest.raises(TemplateFault, match="takes too long"):
            hostile.render({"messages": [said("user", "time")]}, in_hand)
        ended.set()

    threading.Thread(target=render, daemon=True).start()
    assert slow.wait(limits.MAX_WALL_SEC)
    assert rendered(hostile, "hi") == "<hi>"
    assert not over.is_set()
    assert ended.wait(limits.MAX_WALL_SEC + 10)
    assert over.is_set()


def test_a_conversation_whose_job_has_ended_is_not_rendered_on(hostile: Renderer) -> None:
    """Its process is killed at once, also in the middle of a C function."""
    process, in_hand, reasons = _process_of(hostile), CurrentPrompt(), []
    wait_until(
        lambda: not process.children(), within_sec=30, what="the end of the children of the prompts before"
    )

    def render() -> None:
        with pytest.raises(TemplateFault) as fault:
            hostile.render({"messages": [said("user", "power")]}, in_hand)
        reasons.append(str(fault.value))

    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    wait_until(lambda: bool(process.children()), within_sec=30, what="a child that renders")
    [child] = process.children()
    wait_until(lambda: sum(child.cpu_times()[:2]) > 0.1, within_sec=30, what="a child that computes")
    child.suspend()  # So that it cannot end by itself.
    in_hand.drop()
    thread.join(30)
    assert reasons == ["the job has ended"]
    child.resume()
    _, alive = psutil.wait_procs([child], timeout=1)
    assert not alive
    render()  # One that has ended before is not begun.
    assert reasons == ["the job has ended"] * 2


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, r"within 2 s of CPU time and 256 MiB"),
        ("{{ 7 ** (9 ** (9 ** 9)) }}", r"within 2 s of CPU time and 256 MiB"),
        ("{{ 'a' * 10 ** 9 }}", r"too much memory|MemoryError"),
        ("{{ '{:>1000000000}'.format('a') }}", r"too much memory|MemoryError"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "SyntaxError"),
        ("{% if a %}" * 5000, "RecursionError"),
        ("{{ " + "(" * 200000 + " }}", r"broken|within"),
        (f"{{{{ {'9' * 6000} }}}}", "ValueError"),
        ("{% if %}", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_cannot_be_compiled_or_tried_is_a_fault(template: str, reason: str) -> None:
    """With a reason, within the limit, and without leaving a process."""
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(TemplateFault, match=reason):
        Renderer(source(template + "{{ messages[0].content }}"))
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_templates_own_refusal_can_be_printed() -> None:
    """The message comes from an untrusted file and is shown on terminals."""
    raises = "{% if messages[0].content == 'no' %}{{ raise_exception('a\x1b[31m\nb') }}{% endif %}"
    renderer = Renderer(source(raises + "{{ messages[0].content }}"))
    with pytest.raises(TemplateFault, match=r"refuses this: a\\x1b\[31m\\nb$"):
        rendered(renderer, "no")
    renderer.close()
    with pytest.raises(TemplateFault) as broken:
        Renderer(source("{{ raise_exception('\x1b[31m') }}"))
    assert str(broken.value).isprintable()


def test_a_lost_renderer_is_started_again() -> None:
    """For example, after the kernel has killed it for lack of memory."""
    renderer = Renderer(source(HOSTILE))
    process = _process_of(renderer)
    process.kill()
    psutil.wait_procs([process], timeout=10)
    assert rendered(renderer, "hi") == "<hi>"
    assert _process_of(renderer) != process
    renderer.close()


def test_a_prompt_that_was_being_rendered_when_the_renderer_was_lost_is_rendered_again() -> None:
    """The prompt is not the cause."""
    slowly = "{% if messages[0].content == 'hi' %}" + "{% for i in range(99999) %}{% endfor %}" * 20
    renderer = Renderer(source(slowly + "{% endif %}<{{ messages[0].content }}>"))
    process = _process_of(renderer)
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(rendered(renderer, "hi")), daemon=True)
    thread.start()
    wait_until(lambda: bool(process.children()), within_sec=30, what="a child that renders")
    process.kill()
    thread.join(60)
    assert answers == ["<hi>"]
    renderer.close()


def test_the_renderer_ends_with_its_engine() -> None:
    """Also in the middle of a conversation."""
    renderer = Renderer(source(HOSTILE))
    process = _process_of(renderer)

    def render() -> None:
        with pytest.raises(TemplateFault):
            rendered(renderer, "time")

    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    wait_until(lambda: bool(process.children()), within_sec=30, what="a child that renders")
    children = process.children()
    renderer.close()
    _, alive = psutil.wait_procs([process, *children], timeout=20)
    assert not alive
    thread.join(60)


def test_conversations_leave_no_process_and_no_descriptor(hostile: Renderer) -> None:
    """However they end."""
    rendered(hostile, "hi")
    before = psutil.Process().num_fds()
    for _ in range(20):
        assert rendered(hostile, "hi") == "<hi>"
        with pytest.raises(TemplateFault):
            rendered(hostile, "center")
    assert psutil.Process().num_fds() == before
    wait_until(lambda: not _process_of(hostile).children(), within_sec=30, what="ended children")


def test_a_long_conversation_is_within_the_bounds(hostile: Renderer) -> None:
    """A million characters are rendered, also where each could be part of a special token."""
    started = time.process_time()
    assert len(rendered(hostile, "<é " * 333_333)) == 999_999 + 2
    assert time.process_time() - started < limits.MAX_CPU_SEC


def _process_of(renderer: Renderer) -> psutil.Process:
    assert renderer._server.pid is not None
    return psutil.Process(renderer._server.pid)
