"""Constraints are compiled to masks, with a small vocabulary and without a model."""

import json
import random

import jsonschema_rs
import pytest

from tests.grammars import END, IDS, TOY, allowed, tokens_of, write
from worker_orcd.engine.grammars.compiler import Compiler, GrammarFault, Matcher
from worker_orcd.engine.grammars.messages import Vocabulary
from worker_orcd.protocol.messages import Constraint

COMPILER = Compiler(TOY)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bé", None, 12]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["left"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def schema(what: object, *, lenient: bool = False) -> Constraint:
    """A JSON Schema as constraint."""
    return Constraint("json_schema", json.dumps(what), lenient)


def after(constraint: Constraint, text: str, *, ignore_eos: bool = False) -> Matcher:
    """The state behind a text."""
    matcher = COMPILER.compile(constraint, ignore_eos=ignore_eos)
    matcher.accept(tokens_of(text))
    return matcher


def fault_of(constraint: Constraint) -> str:
    """Why a constraint is refused."""
    with pytest.raises(GrammarFault) as fault:
        COMPILER.compile(constraint)
    return str(fault.value)


@pytest.mark.parametrize(
    "what",
    [
        PERSON,
        TREE,
        {"type": "object"},
        {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "x"}], "minItems": 2},
        {"type": "string", "format": "date"},
        {"type": "string", "pattern": "^[a-f]{2,5}-[0-9]+$"},
        {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    ],
)
def test_whatever_is_drawn_from_the_masks_is_valid(what: dict[str, object]) -> None:
    """Every output that ends by itself validates against its schema."""
    validator = jsonschema_rs.validator_for(what, validate_formats=True)
    written = [write(COMPILER.compile(schema(what)), random.Random(seed)) for seed in range(20)]
    whole = [json.loads(text) for text in written if text is not None]
    assert len(whole) > 3
    for value in whole:
        validator.validate(value)


def test_a_schema_that_allows_all_is_taken() -> None:
    """Written as `true`, too."""
    assert not after(schema(True), '{"a": ').mask().complete


def test_tokens_so_far_lead_to_the_same_mask_as_one_by_one() -> None:
    """So a requeued run continues as if it had not been interrupted."""
    text = '{"name": "ab", "age": 1'
    one_by_one = COMPILER.compile(schema(PERSON))
    for token in tokens_of(text):
        one_by_one.mask()
        one_by_one.accept((token,))
    assert one_by_one.mask() == after(schema(PERSON), text).mask()


def test_an_output_is_complete_where_nothing_can_follow() -> None:
    """The run then ends without another token."""
    assert not after(schema(PERSON), '{"name": "ab", "age": 1').mask().complete
    assert after(schema(PERSON), '{"name": "ab", "age": 1}').mask().complete


def test_an_output_that_may_end_may_also_go_on() -> None:
    """The model decides, unless end-of-generation tokens are ignored."""
    number = Constraint("regex", "[0-9]+")
    assert END in allowed(after(number, "1").mask())
    assert IDS[b"12"] in allowed(after(number, "1").mask())
    assert END not in allowed(after(number, "1", ignore_eos=True).mask())
    assert END not in allowed(after(number, "").mask())


def test_a_vocabulary_without_an_end_token_still_completes() -> None:
    """There are such models; nothing but `complete` then ends an output."""
    compiler = Compiler(Vocabulary(TOY.tokens, []))
    matcher = compiler.compile(schema({"const": True}))
    matcher.accept(tokens_of("true"))
    assert matcher.mask().complete


def test_white_space_between_tokens_of_json_is_bounded() -> None:
    """Small models otherwise write white space until `max_tokens`."""
    matcher = after(schema(PERSON), "{" + "\n" + " " * 32)
    assert not [token for token in allowed(matcher.mask()) if TOY.tokens[token].isspace()]
    assert IDS[b'"'] in allowed(matcher.mask())


@pytest.mark.parametrize(
    ("what", "reason", "place"),
    [
        ({"type": "strin"}, "Invalid type: strin", ""),
        ({"properties": {"a": {"items": {"not": {}}}}}, "Unimplemented keys", "/properties/a/items"),
        ({"anyOf": [{"type": "null"}, {"pattern": "(?=x)"}]}, "look-around", "/anyOf/1"),
        ({"properties": {"a/b": {"minimum": "x"}}}, "Expected f64", "/properties/a~1b"),
        ({"$defs": {"x": {"type": 3}}, "$ref": "#/$defs/x"}, "type must be a string", "/$defs/x"),
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "does not exist", "/properties/a"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "", ""),
        (False, "", ""),
        ({"$ref": "#"}, "", ""),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_with_its_place(
    what: object, reason: str, place: str
) -> None:
    """The reason is one printable line."""
    fault = fault_of(schema(what)) if reason or what is False else _refused_at_the_first_mask(schema(what))
    assert reason in fault
    assert fault.endswith(f", at {place}") is bool(place)
    assert fault.isprintable()


def _refused_at_the_first_mask(constraint: Constraint) -> str:
    with pytest.raises(GrammarFault) as fault:
        COMPILER.compile(constraint).mask()
    return str(fault.value)


def test_a_lenient_schema_ignores_what_cannot_be_enforced() -> None:
    """As OpenAI's `strict: false` asks."""
    assert (
        not COMPILER.compile(schema({"type": "string", "not": {"const": "a"}}, lenient=True)).mask().complete
    )


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"]),
        ('root ::= item ("," item)*  # a list\nitem ::= [a-c]{2,3}', ["ab", "abc,ba"]),
        ('root ::= "\\u00e9" [\\u00e0-\\u00ea] "\\x41" "\\u0022"', ['éàA"']),
        ('root ::= listA\nlistA ::= [0-9]+ | [0-9]+ "-" listA', ["1", "1-23-4"]),
        ('root ::= root "a" | "b"', ["baa"]),
    ],
)
def test_gbnf_allows_what_it_describes(grammar: str, texts: list[str]) -> None:
    """It allows no other text."""
    for text in texts:
        matcher = after(Constraint("gbnf", grammar), text)
        assert matcher.mask().complete or END in allowed(matcher.mask()), text
    with pytest.raises(GrammarFault):
        after(Constraint("gbnf", grammar), "?")


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Constraint("gbnf", ""), "root"),
        (Constraint("gbnf", 'root ::= "a'), "line 1"),
        (Constraint("gbnf", "root ::= nothing"), "nothing"),
        (Constraint("gbnf", 'root ::= "\\ud800"'), "not a character"),
        (Constraint("gbnf", "root ::= " + "(" * 100_000), "recursion"),
        (Constraint("gbnf", "root ::= [a-z]{5,2}"), ""),
        (Constraint("regex", "(a"), "unclosed group"),
        (Constraint("regex", "(" * 50_000 + ")" * 50_000), ""),
        (Constraint("lark", "start: x"), "x"),
        (Constraint("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000), "recursion limit"),
        (Constraint("json_schema", "{"), "EOF"),
        (Constraint("json_schema", "[]"), ""),
    ],
)
def test_a_malformed_constraint_is_refused(constraint: Constraint, reason: str) -> None:
    """In one printable line."""
    fault = fault_of(constraint)
    assert reason in fault
    assert fault.isprintable()
    assert len(fault) < 400
