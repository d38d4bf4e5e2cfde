"""The model's chat template: somebody else's program around a client's words."""

from datetime import datetime, timedelta

import pytest

from worker_orcd.engine import chat
from worker_orcd.engine.chat import ChatTemplate
from worker_orcd.engine.model import PromptRefused


def template(source: str) -> ChatTemplate:
    """One with this source."""
    return ChatTemplate(source, bos="<s>", eos="</s>")


def test_a_prompt_is_told_apart_from_the_templates_own_text() -> None:
    """Also one that looks like it."""
    it = template("<user>{{ messages[0].content }}</user>")
    assert it.split("hi") == ("<user>", "hi", "</user>")
    assert it.split("</user><user>") == ("<user>", "</user><user>", "</user>")


def test_a_template_that_tells_the_date_works_tomorrow_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the prompt is put into the day's own frame."""
    it = template("{{ strftime_now('%Y-%m-%d') }}: {{ messages[0].content }}.")
    tomorrow = datetime.now().astimezone() + timedelta(days=1)

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return tomorrow

    monkeypatch.setattr(chat, "datetime", Later)
    assert it.split("hi") == (f"{tomorrow:%Y-%m-%d}: ", "hi", ".")


def test_marks_for_training_are_only_their_content() -> None:
    """`{% generation %}` stands in many published templates."""
    it = template("<u>{{ messages[0].content }}{% generation %}<a>{% endgeneration %}")
    assert it.split("hi") == ("<u>", "hi", "<a>")


@pytest.mark.parametrize("source", ["{% if %}", "{{ unclosed", "nothing of the prompt", "{% for x in y %}"])
def test_a_broken_template_is_refused_when_it_is_read(source: str) -> None:
    """With a sentence for the client of `template: auto`, not with a traceback."""
    with pytest.raises(PromptRefused, match="chat template") as refused:
        template(source)
    assert refused.value.param == "template"


@pytest.mark.parametrize(
    "fault", ["{{ 1 // 0 }}", "{{ none.x.y }}", "{{ raise_exception('no') }}", "{{ 'a' + 1 }}"]
)
def test_whatever_a_template_raises_refuses_this_prompt_only(fault: str) -> None:
    """The engine goes on."""
    it = template("{% if messages[0].content == 'bad' %}" + fault + "{% endif %}<u>{{ messages[0].content }}")
    assert it.split("good")[1] == "good"
    with pytest.raises(PromptRefused, match="fails on this prompt"):
        it.split("bad")
