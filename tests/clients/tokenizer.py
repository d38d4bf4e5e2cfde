"""The bundled model's tokenizer in the form that Hugging Face's `transformers` loads from a folder."""

import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker_orcd.settings import bundled_model
from worker_orcd.supervisor.gguf import ARRAY, SCALARS, STRING

_U32, _U64 = SCALARS[4], SCALARS[10]
_CONTROL = 3
"""The type of tokens that text cannot contain."""


def _metadata(file: mmap.mmap) -> Iterator[tuple[str, Any]]:
    """The keys and values at the beginning of a GGUF file."""
    place = 16

    def scalar(form: struct.Struct) -> Any:
        nonlocal place
        (number,) = form.unpack_from(file, place)
        place += form.size
        return number

    def value(kind: int) -> Any:
        nonlocal place
        if kind == ARRAY:
            of = scalar(_U32)
            return [value(of) for _ in range(scalar(_U64))]
        if kind != STRING:
            return scalar(SCALARS[kind])
        length = scalar(_U64)
        place += length
        return file[place - length : place].decode()

    for _ in range(scalar(_U64)):
        yield value(STRING), value(scalar(_U32))


def write_tokenizer(folder: Path) -> Path:
    """Write the tokenizer of the bundled model, a BPE one like GPT-2's that splits digits. Returns the folder."""
    with bundled_model().open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        prefix = "tokenizer."
        read = {key.removeprefix(prefix): one for key, one in _metadata(file) if key.startswith(prefix)}
    tokens = read["ggml.tokens"]
    assert (read["ggml.model"], read["ggml.pre"]) == ("gpt2", "smollm")
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    made = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": tokens[number], **plain}
            for number, kind in enumerate(read["ggml.token_type"])
            if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_of],
        },
        "post_processor": None,
        "decoder": bytes_of,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in read["ggml.merges"]],
        },
    }
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[read["ggml.bos_token_id"]],
        "eos_token": tokens[read["ggml.eos_token_id"]],
        "chat_template": read["chat_template"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
    return folder
