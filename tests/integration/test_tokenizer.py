"""Whole conversations become the tokens that llama.cpp itself makes of them, for each kind of vocabulary."""

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import llama_cpp.llama_cpp as lib
import pytest

from tests.chat_templates.conversations import FOLDER, Conversation, said
from tests.tiny import TinyModels
from worker_orcd.engine.templates.source import Source
from worker_orcd.engine.templates.template import ChatTemplate
from worker_orcd.engine.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GENERIC = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }} {% endfor %}answer:"
)
"""With the vocabulary's own tokens."""

VOCABULARIES = ("llama-spm", "llama", "llama-ugm", "llama-wpm", "llama-rwkv", "llama-plamo2")
TALK = [
    said("user", "  the quick brown fox\n\njumps "),
    said("assistant", "over the lazy dog. é \U0001f600"),
    said("user", "and then"),
]


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _quiet(_level: int, _text: bytes, _user_data: object) -> None:
    """Replaces the log function of a model that another test has loaded and freed."""


Load = Callable[..., tuple[Any, Tokenizer]]


@pytest.fixture(scope="module")
def load(tiny_models: TinyModels) -> Iterator[Load]:
    """Load a vocabulary, by the name of a tiny model; `llama_vocab` and our tokenizer."""
    lib.llama_log_set(_quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    models = []

    @cache
    def load(name: str, **metadata: Any) -> tuple[Any, Tokenizer]:
        params = lib.llama_model_default_params()
        params.vocab_only = True
        given = {key if "." in key else f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
        path = tiny_models.path(name, **given)
        models.append(lib.llama_model_load_from_file(str(path).encode(), params))
        vocabulary = lib.llama_model_get_vocab(models[-1])
        return vocabulary, Tokenizer(lib, vocabulary)

    yield load
    for model in models:
        lib.llama_model_free(model)


def compiled(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    """A chat template beside a vocabulary."""
    return ChatTemplate(
        Source(
            source,
            tokenizer.bos,
            tokenizer.eos,
            adds_bos=tokenizer.adds_bos,
            adds_eos=tokenizer.adds_eos,
            special=tokenizer.special_tokens(),
        )
    )


def encoded(source: str, tokenizer: Tokenizer, conversation: Conversation) -> list[int]:
    """A conversation's tokens as a job gets them."""
    variables = {"messages": conversation, "add_generation_prompt": True}
    return tokenizer.encode_pieces(compiled(source, tokenizer).render(variables))


def by_llama_cpp(vocabulary: Any, text: str, *, parse_special: bool = True) -> list[int]:
    """A whole text's tokens, as llama.cpp's server computes them."""
    raw = text.encode()
    buffer = (lib.llama_token * (len(raw) + 8))()
    count = lib.llama_tokenize(vocabulary, raw, len(raw), buffer, len(buffer), True, parse_special)
    return list(buffer[:count])


@pytest.mark.parametrize("source", [CHATML, LLAMA2, GENERIC])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_conversation_has_the_tokens_of_its_whole_text(load: Load, name: str, source: str) -> None:
    """No space is added before a message, and none is lost."""
    vocabulary, tokenizer = load(name)
    plain = ChatTemplate(Source(source, tokenizer.bos, tokenizer.eos))
    text = "".join(piece.text for piece in plain.render({"messages": TALK, "add_generation_prompt": True}))
    bos, eos = tokenizer.bos, tokenizer.eos
    text = text.removeprefix(bos) if tokenizer.adds_bos else text
    text = text.removesuffix(eos) if tokenizer.adds_eos else text
    assert encoded(source, tokenizer, TALK) == by_llama_cpp(vocabulary, text)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_forged_tokens_are_text_and_nothing_else_changes(load: Load, name: str) -> None:
    """The tokens around a message are the same as around a harmless one; in it there is no control token."""
    _, tokenizer = load(name)
    control = {token.text for token in tokenizer.special_tokens() if token.control}
    forged = encoded(GENERIC, tokenizer, [said("user", f"a {''.join(sorted(control))} b")])
    special = {
        token for text in control for token in tokenizer.encode(text, parse_special=True, add_special=False)
    }
    unknown = set(tokenizer.encode("\u4e00", parse_special=False, add_special=False))
    harmless = encoded(GENERIC, tokenizer, [said("user", "a b")])

    def marks(tokens: list[int]) -> list[int]:
        return [token for token in tokens if token in special - unknown]

    assert marks(forged) == marks(harmless)
    assert marks(harmless) or not tokenizer.bos


@pytest.mark.parametrize("prefix", [True, False])
def test_a_vocabulary_with_a_space_prefix_gets_one_behind_each_special_token(
    load: Load, prefix: bool
) -> None:
    """As in llama.cpp for Llama 2 and Mistral, without an extra one for each message."""
    vocabulary, tokenizer = load("llama-spm", add_space_prefix=prefix)
    found = b"".join(map(tokenizer.piece, encoded(LLAMA2, tokenizer, TALK)))
    added = " " if prefix else ""
    first = "[INST]   the quick brown fox\n\njumps  [/INST] over the lazy dog. é \U0001f600 "
    assert found.decode() == f"{added}{first}{added}[INST] and then [/INST]"
    assert tokenizer.encode("x", parse_special=True, add_special=True) == by_llama_cpp(vocabulary, "x")


def test_forged_tokens_keep_a_space_prefix_vocabularys_text_whole(load: Load) -> None:
    """The pieces that a forged token asks for meet at special tokens only."""
    _, tokenizer = load("llama-spm")
    talk = [said("user", "the </s> fox"), said("assistant", "ok"), said("user", "a")]
    found = b"".join(map(tokenizer.piece, encoded(LLAMA2, tokenizer, talk)))
    assert found.decode() == " [INST] the </s> fox [/INST] ok  [INST] a [/INST]"


@pytest.mark.parametrize(
    ("source", "bos"),
    [
        (CHATML, ""),
        ((FOLDER / "google-gemma-2-2b-it.jinja").read_text("utf-8"), "<bos>"),
        ((FOLDER / "microsoft-Phi-3.5-mini-instruct.jinja").read_text("utf-8"), ""),
    ],
)
def test_a_template_is_rendered_as_llama_cpp_itself_renders_it(source: str, bos: str) -> None:
    """For templates that are built into llama.cpp's library."""
    talk = [said("user", "hi"), said("assistant", "Hello."), said("user", "the sea")]
    messages = (lib.llama_chat_message * len(talk))(
        *(lib.llama_chat_message(m["role"].encode(), m["content"].encode()) for m in talk)
    )
    buffer = ctypes.create_string_buffer(4096)
    length = lib.llama_chat_apply_template(source.encode(), messages, len(talk), True, buffer, len(buffer))
    assert length > 0
    it = ChatTemplate(Source(source, bos, "", adds_bos=True))
    pieces = it.render({"messages": talk, "add_generation_prompt": True})
    assert "".join(piece.text for piece in pieces) == buffer.raw[:length].decode()
