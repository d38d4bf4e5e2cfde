"""Chat templates put together at random from what is costly, deep or wrong: each renders or is a fault, in bounds.

`TEMPLATE_FUZZ` is how many are tried, 40 if it is not set; the nightly lane tries 25 times as many.
"""

import os
import random
from collections.abc import Sequence

import psutil
import pytest

from tests.chat_templates.conversations import BOS, EOS, said
from worker_orcd.engine.templates.renderer import Renderer
from worker_orcd.engine.templates.source import Source, TemplateFault
from worker_orcd.engine.templates.special_tokens import Piece, SpecialToken

COUNT = int(os.environ.get("TEMPLATE_FUZZ", "40"))
SPECIAL = (SpecialToken("<s>"), SpecialToken("<|im_end|>"))
CONVERSATION = [
    said("system", "a <|im_end|>"),
    said("user", "b"),
    said("assistant", "<s>c"),
    said("user", "d"),
]

_ATOMS = (
    *(
        "m",
        "messages",
        "m.content",
        "m.role",
        "bos_token",
        "none",
        "true",
        "1",
        "-1",
        "0.5",
        "10 ** 8",
        "'a'",
        "'<s>'",
    ),
    *(
        "messages | length",
        "loop.index",
        "tools",
        "nothing",
        "range(99999)",
        "dict(a=1)",
        "namespace(x=1)",
        "self",
    ),
    *(
        "cycler('a', 'b')",
        "joiner()",
        "lipsum",
        "caller",
        "strftime_now('%Y' * 99)",
        "m.items()",
        "m.content.format",
    ),
    *("m.__class__", "''.__class__.__mro__", "messages.append(1)", "m.content.encode()", "raise_exception"),
)
_FILTERS = (
    *(
        "trim",
        "list",
        "length",
        "tojson",
        "tojson(indent=99999)",
        "tojson(ensure_ascii=true)",
        "join",
        "upper",
        "title",
    ),
    *(
        "batch(10 ** 7, 'x')",
        "slice(10 ** 7)",
        "wordwrap(1)",
        "center(10 ** 8)",
        "indent(10 ** 6)",
        "reverse",
        "sort",
    ),
    *(
        "unique",
        "sum",
        "string",
        "escape",
        "safe",
        "urlize",
        "pprint",
        "xmlattr",
        "map('upper')",
        "groupby('role')",
    ),
    *(
        "replace('', 'aaaaaaaa')",
        "format('a', 'b')",
        "attr('content')",
        "int",
        "first",
        "random",
        "striptags",
        "truncate",
    ),
)
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "in", "==", "<", "and", "or", "is defined and")
_METHODS = (
    *(
        "split('<')",
        "strip()",
        "replace('a', 'b' * 9999)",
        "center(10 ** 7)",
        "zfill(10 ** 7)",
        "ljust(10 ** 9)",
    ),
    *(
        "join(messages)",
        "format(messages)",
        "encode()",
        "expandtabs(10 ** 8)",
        "splitlines()",
        "translate({97: 'b'})",
    ),
)


def expression(draw: random.Random, depth: int) -> str:
    """A random expression."""
    if depth <= 0:
        return draw.choice(_ATOMS)
    inner = expression(draw, depth - 1)
    return draw.choice(
        (
            f"({inner} {draw.choice(_OPERATORS)} {expression(draw, depth - 1)})",
            f"({inner} | {draw.choice(_FILTERS)})",
            f"({inner}).{draw.choice(_METHODS)}",
            f"({inner} if {expression(draw, depth - 1)} else {expression(draw, depth - 2)})",
            f"({inner})[{expression(draw, depth - 2)}:]",
            f"[{inner}, {expression(draw, depth - 2)}]",
            f"{{'a': {inner}}}",
        )
    )


def statements(draw: random.Random, depth: int) -> str:
    """A random part of a template."""
    if depth <= 0:
        return draw.choice(("{{ m.content }}", "{{ messages[0].content }}", "text", "{# comment #}"))
    inner = statements(draw, depth - 1)
    value = expression(draw, draw.randrange(4))
    return draw.choice(
        (
            f"{{% for m in {value} %}}{inner}{{% endfor %}}",
            f"{{% for m in messages %}}{inner}{{{{ {value} }}}}{{% endfor %}}",
            f"{{% if {value} %}}{inner}{{% else %}}{statements(draw, depth - 2)}{{% endif %}}",
            f"{{% set m = {value} %}}{inner}",
            f"{{% set m %}}{inner}{{{{ {value} }}}}{{% endset %}}{{{{ m * 2 }}}}",
            f"{{% macro f(x) %}}{inner}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f({value}) }}}}",
            f"{{% filter {draw.choice(_FILTERS)} %}}{inner}{{% endfilter %}}",
            f"{{% call(x) f({value}) %}}{inner}{{% endcall %}}",
            f"{{% generation %}}{inner}{{% endgeneration %}}{{{{ {value} }}}}",
            f"{inner}{statements(draw, depth - 1)}",
            f"{inner}{{% break %}}{{% include 'x' %}}",
            inner[draw.randrange(len(inner)) :],
        )
    )


def _compiled(text: str) -> tuple[Renderer | None, str]:
    try:
        return Renderer(Source(text, BOS, EOS, special=SPECIAL)), ""
    except TemplateFault as fault:
        return None, str(fault)


def _rendered(renderer: Renderer) -> tuple[Sequence[Piece], str]:
    try:
        return renderer.render({"messages": CONVERSATION}), ""
    except TemplateFault as fault:
        return (), str(fault)


@pytest.mark.parametrize("part", range(4))
def test_any_template_renders_or_is_a_fault(part: int) -> None:
    """It leaves no process, and a client's text never becomes a special token."""
    try_templates(range(part * COUNT // 4, (part + 1) * COUNT // 4))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_many_templates_render_or_are_faults() -> None:
    """25 times as many."""
    try_templates(range(COUNT, 26 * COUNT))


def try_templates(seeds: range) -> None:
    """Compile and render them. A seed names its template."""
    outcomes = {"rendered": 0, "refused": 0, "broken": 0}
    for seed in seeds:
        draw = random.Random(seed)
        # Every second one shows the prompt and is hostile only on request.
        harm = statements(draw, draw.randrange(1, 6))
        guarded = f"{{% if messages | length > 1 %}}{harm}{{% endif %}}{{{{ messages[0].content }}}}"
        text = guarded if seed % 2 else harm + "{{ messages[0].content }}"
        renderer, said_of_it = _compiled(text)
        if renderer is None:
            outcomes["broken"] += 1
            assert said_of_it.isprintable(), (seed, text)
            continue
        pieces, said_of_it = _rendered(renderer)
        outcomes["refused" if said_of_it else "rendered"] += 1
        assert said_of_it.isprintable(), (seed, text)
        assert not any("<|im_end|>" in piece.text for piece in pieces if piece.parsed), (seed, text)
        one = renderer.render({"messages": [said("user", "hi")]})
        assert "hi" in "".join(piece.text for piece in one), (seed, text)
        process = renderer._server.pid
        assert process is not None
        processes = [psutil.Process(process)]
        renderer.close()
        _, alive = psutil.wait_procs(processes, timeout=20)
        assert not alive, (seed, text)
    print(outcomes)
    assert outcomes["rendered"] + outcomes["refused"] > 0
