"""Random JSON Schemas, small enough that a small model comes to the end of what they allow."""

import random
from typing import Any

Schema = dict[str, Any]
_PATTERNS = ("^[a-z]{1,6}$", "^(red|green|blue)$", "^[0-9]{2}-[0-9]{2}$", "^\\d+\\.\\d$", "x")
_UNENFORCEABLE: tuple[Schema, ...] = (
    {"not": {"type": "null"}},
    {"uniqueItems": True},
    {"contains": {"type": "integer"}},
    {"type": "strin"},
    {"format": "no-such-format"},
    {"$ref": "#/$defs/missing"},
    {"pattern": "(?=a)b"},
)


def random_schema(rng: random.Random) -> Schema:
    """One. About a twentieth of them cannot be enforced."""
    schema = _schema(rng, 3)
    if "properties" in schema and rng.random() < 0.2:
        # Only what is referred to is looked at.
        schema = {"$defs": {"shared": _leaf(rng)}, **schema}
        schema["properties"]["shared"] = {"$ref": "#/$defs/shared"}
    return schema


def _schema(rng: random.Random, depth: int) -> Schema:
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return _leaf(rng)
    if kind < 0.65:
        names = [
            f"{rng.choice(('id', 'name', 'größe', 'a b'))}{number}" for number in range(rng.randint(0, 4))
        ]
        schema: Schema = {
            "type": "object",
            "properties": {name: _schema(rng, depth - 1) for name in names},
            "required": [name for name in names if rng.random() < 0.7],
            "additionalProperties": False,
        }
        if rng.random() < 0.2:
            schema["title"], schema["description"] = "A title", "What it is."
        return schema
    if kind < 0.85:
        least = rng.randint(0, 2)
        return {"type": "array", "items": _schema(rng, depth - 1), "minItems": least, "maxItems": least + 1}
    return {"anyOf": [_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}


def _leaf(rng: random.Random) -> Schema:
    low = rng.randint(-50, 50)
    return rng.choice(
        [
            {"type": "string", "maxLength": rng.randint(0, 12)},
            {"type": "string", "minLength": 2, "maxLength": 5},
            {"type": "string", "pattern": rng.choice(_PATTERNS), "maxLength": 8},
            {"type": "string", "format": rng.choice(("date", "uuid", "ipv4"))},
            {"enum": ["a", 'quo"te', "line\nbreak", 1, 2.5, None, True][: rng.randint(1, 7)]},
            {"const": rng.choice([0, "x", {"a": [1]}, [], None])},
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 200)},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 30, "multipleOf": 5},
            {"type": "number", "minimum": low, "maximum": low + 1},
            {"type": ["boolean", "null"]},
            {"type": "boolean"},
            *([rng.choice(_UNENFORCEABLE)] if rng.random() < 0.25 else []),
        ]
    )
