"""Conversations whose last message is continued, or followed by nothing."""

import json
from typing import Any

import pytest

from tests.chat_templates.conversations import BOS, EOS, FOLDER, said, special_tokens
from tests.helpers import script
from worker_orcd.api.openai.chat_request import ChatRequest
from worker_orcd.engine.templates.source import Source, TemplateFault
from worker_orcd.engine.templates.special_tokens import SpecialToken
from worker_orcd.engine.templates.template import ChatTemplate
from worker_orcd.jobs.errors import JobError
from worker_orcd.tool_calls.generic_prompt import without_tools

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content TRIM }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HI = "<|im_start|>user\nhi<|im_end|>\n"
ANSWER = HI + "<|im_start|>assistant\n"


def template(source: str) -> ChatTemplate:
    """One with this source, with the special tokens that stand in it."""
    tokens = tuple(SpecialToken(text) for text in special_tokens(source))
    return ChatTemplate(Source(source, BOS, EOS, special=tokens))


def rendered(it: ChatTemplate, last: str, **end: str) -> str:
    """The conversation "hi" and this answer, with an end of its last message."""
    messages: list[dict[str, Any]] = [said("user", "hi"), {**said("assistant", last), **end}]
    pieces = it.render({"messages": messages, "add_generation_prompt": True})
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("trim", "last", "expected"),
    [
        ("", "Two and", "Two and"),
        ("", "Two and ", "Two and "),
        ("| trim", "Two and ", "Two and"),
        ("| trim", " hi", "hi"),
        ("", "", ""),
        ("", "<|im_end|>", "<|im_end|>"),
    ],
)
def test_an_open_message_ends_the_prompt(trim: str, last: str, expected: str) -> None:
    """With white space at its end only if the template keeps it; also where its text occurs earlier."""
    assert rendered(template(CHATML.replace("TRIM", trim)), last, end="open") == ANSWER + expected


def test_a_closed_message_is_followed_by_nothing() -> None:
    """And any other by the beginning of an answer."""
    it = template(CHATML.replace("TRIM", ""))
    assert rendered(it, "Two.", end="closed") == ANSWER + "Two.<|im_end|>\n"
    assert rendered(it, "Two.") == ANSWER + "Two.<|im_end|>\n<|im_start|>assistant\n"


def test_a_special_token_in_an_open_message_stays_text() -> None:
    """As in any message of a client."""
    it = template(CHATML.replace("TRIM", ""))
    pieces = it.render({"messages": [said("user", "hi"), {**said("assistant", "<|im_end|>"), "end": "open"}]})
    assert not pieces[-1].parsed
    assert pieces[-1].text.endswith("<|im_end|>")


def test_a_template_that_leaves_the_last_message_out_refuses_to_continue_it() -> None:
    """There is no place to continue from."""
    it = template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(TemplateFault, match="does not show the last message"):
        rendered(it, "Two", end="open")


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.jinja")))
def test_published_templates_continue_a_message(name: str) -> None:
    """Whatever they write behind an answer is left out."""
    it = template((FOLDER / f"{name}.jinja").read_text("utf-8"))
    assert rendered(it, "Two and", end="open").endswith("Two and")


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, None),
        ({"add_generation_prompt": True, "continue_final_message": False}, None),
        ({"add_generation_prompt": False}, "closed"),
        ({"continue_final_message": True}, "open"),
        ({"add_generation_prompt": False, "continue_final_message": True}, "open"),
    ],
)
def test_a_chat_says_how_its_prompt_ends(fields: dict[str, bool], end: str | None) -> None:
    """In vLLM's words; a message cannot say it itself."""
    messages = [{"role": "user", "content": script()}, {**said("assistant", "Two"), "end": "open"}]
    asked = ChatRequest.parse(json.dumps({"messages": messages, **fields}).encode())
    (job,) = asked.wanted("chat-1")
    assert json.loads(job.prompt)[-1].get("end") == end


def test_the_end_is_kept_where_the_chat_template_knows_no_tools() -> None:
    """Also where results of tools are joined with the message behind them."""
    messages = [{"role": "tool", "content": "4"}, {**said("user", "So it"), "end": "open"}]
    plain = without_tools(messages, [{"type": "function", "function": {"name": "add"}}])
    assert plain[-1]["end"] == "open"
    assert plain[-1]["content"].endswith("So it")


def test_both_at_once_are_refused() -> None:
    """As vLLM refuses them."""
    body = {
        "messages": [said("user", "x")],
        "add_generation_prompt": True,
        "continue_final_message": True,
    }
    with pytest.raises(JobError) as caught:
        ChatRequest.parse(json.dumps(body).encode()).wanted("chat-1")
    assert caught.value.param == "continue_final_message"
