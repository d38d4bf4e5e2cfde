"""Small vocabularies of each kind of tokenizer that llama.cpp knows, as GGUF metadata."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from gguf import TokenType

Metadata = dict[str, Any]

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = (
    "the quick brown fox jumps over the lazy dog and then the worker reads a long story about an old man who went to "
    "the sea and there he saw a ship which came from another country with all of its people singing in the morning "
) * 4
_MERGES = 192
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_chars() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _merge(word: list[str], first: str, second: str) -> list[str]:
    merged: list[str] = []
    for part in word:
        if part == second and merged and merged[-1] == first:
            merged[-1] = first + second
        else:
            merged.append(part)
    return merged


def _bpe() -> Metadata:
    tokens = _byte_chars()
    space = tokens[32]
    words = [list(word if i == 0 else space + word) for i, word in enumerate(_TEXT.split())]
    merges: list[str] = []
    while len(merges) < _MERGES:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        first, second = max(sorted(pairs), key=lambda pair: pairs[pair])
        merges.append(f"{first} {second}")
        tokens.append(first + second)
        words = [_merge(word, first, second) for word in words]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens + special,
        "tokenizer.ggml.token_type": [int(TokenType.NORMAL)] * len(tokens) + [int(TokenType.CONTROL)] * 3,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) + 1,
        "tokenizer.ggml.eos_token_id": len(tokens) + 2,
        "tokenizer.chat_template": _CHATML,
    }


def _sentencepiece(model: str, **more: int) -> Metadata:
    words = sorted(set(_TEXT.split()))
    letters = [chr(code) for code in range(33, 127)]
    plain = ["\u2581", *letters, *("\u2581" + x for x in letters), *("\u2581" + word for word in words)]
    tokens = ["<unk>", "<s>", "</s>", *_BYTES, *dict.fromkeys(plain)]
    rest = len(tokens) - 259
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(rest)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * rest,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def _wpm() -> Metadata:
    letters = [chr(code) for code in range(97, 123)]
    words = sorted(set(_TEXT.split()))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    plain = [*("\u2581" + x for x in [*letters, *words, "."]), *letters]
    tokens = list(dict.fromkeys([*special, *plain]))
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "jina-v2-en",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(tokens) - 5),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.mask_token_id": 4,
    }


def _rwkv() -> Metadata:
    """As llama.cpp's converter writes it: Python's escapes, byte tokens 1 to 256, token 0 for the end."""
    tokens = ["<s>"] + [f"\\x{byte:02x}" for byte in range(256)]
    tokens += [*sorted({" " + word for word in _TEXT.split()}), "\\n\\n"]
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }


def _plamo2() -> Metadata:
    words = sorted(set(_TEXT.split()))
    tokens = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>", *_BYTES]
    rest = [*(chr(code) for code in range(32, 127)), *(" " + word for word in words)]
    return {
        "tokenizer.ggml.model": "plamo2",
        "tokenizer.ggml.tokens": tokens + rest,
        "tokenizer.ggml.scores": [0.0] * len(tokens) + [-1.0 - i / 100 for i in range(len(rest))],
        "tokenizer.ggml.token_type": [2, 3, 3, 3] + [6] * 256 + [1] * len(rest),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


VOCABULARIES: dict[str, Callable[[], Metadata]] = {
    "bpe": _bpe,
    "spm": lambda: _sentencepiece("llama"),
    "ugm": lambda: _sentencepiece("t5", padding_token_id=0),
    "wpm": _wpm,
    "rwkv": _rwkv,
    "plamo2": _plamo2,
    "none": lambda: {"tokenizer.ggml.model": "no_vocab"},
}
