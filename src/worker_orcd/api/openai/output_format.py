"""Fields for the format of the output, in the variants of OpenAI, vLLM and llama-server."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from worker_orcd.jobs.constraint import Constraint, Schema
from worker_orcd.jobs.errors import invalid
from worker_orcd.jobs.request import Body

_ANY_OBJECT: Schema = {"type": "object"}


class NamedSchema(Body):
    """A JSON Schema with a name, which has no effect.

    `strict` is true by default: a schema that cannot be enforced is refused. With false, the parts that cannot be
    enforced are ignored.
    """

    model_config = ConfigDict(extra="ignore")

    schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = None

    def constraint(self, param: str) -> Constraint:
        """The constraint."""
        return Constraint.json_schema(self.schema_, param, lenient=self.strict is False)


class ResponseFormat(Body):
    """`response_format` of a completion."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: dict[str, Any] | bool | None = Field(
        default=None, alias="schema", description="of `json_object`, as in llama-server"
    )

    def constraint(self, param: str) -> Constraint | None:
        """The constraint; None: the output is free text.

        Raises:
            JobError: `INVALID_REQUEST`: the schema is missing or out of bounds.
        """
        if self.type == "text":
            return None
        if self.json_schema is not None and self.type == "json_schema":
            return self.json_schema.constraint(param)
        if self.schema_ is None and self.type == "json_schema":
            raise invalid(f"{param}.json_schema is required", param)
        return Constraint.json_schema(_ANY_OBJECT if self.schema_ is None else self.schema_, param)


class TextFormat(Body):
    """`text.format` of a response."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """`text` of a response."""

    model_config = ConfigDict(extra="ignore")

    format: TextFormat | None = None

    @property
    def kept_bytes(self) -> int:
        """Approximate memory of these options. JSON values take several times their text's size."""
        return 8 * len(self.model_dump_json())

    def shown(self) -> dict[str, Any]:
        """These options in the response object."""
        given = self.format or TextFormat(type="text")
        return {"format": given.model_dump(by_alias=True, exclude_none=True)}

    def constraint(self) -> Constraint | None:
        """The constraint; None: the output is free text.

        Raises:
            JobError: `INVALID_REQUEST`: the schema is missing or out of bounds.
        """
        given = self.format
        if given is None or given.type == "text":
            return None
        if given.type == "json_object":
            return Constraint.json_schema(_ANY_OBJECT, "text.format")
        if given.schema_ is None:
            raise invalid("text.format.schema is required", "text.format")
        return Constraint.json_schema(given.schema_, "text.format", lenient=given.strict is False)


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`."""

    model_config = ConfigDict(extra="ignore")

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: None = Field(default=None, description="not supported")
    whitespace_pattern: None = Field(default=None, description="not supported")
    disable_any_whitespace: Literal[False] | None = Field(default=None, description="not supported")
    disable_additional_properties: Literal[False] | None = Field(default=None, description="not supported")


class OutputFormat(Body):
    """The fields of a completion that constrain its output. A request may have at most one of them."""

    model_config = ConfigDict(extra="ignore")

    response_format: ResponseFormat | None = Field(
        default=None, description="`json_object`, or `json_schema` with `strict`"
    )
    json_schema: dict[str, Any] | bool | None = Field(default=None, description="as in `POST /execute`")
    grammar: str | None = Field(default=None, description="as in `POST /execute`")
    guided_json: dict[str, Any] | str | None = Field(default=None, description="vLLM's `json_schema`")
    guided_regex: str | None = Field(default=None, description="a regular expression for the whole output")
    guided_choice: list[str] | None = Field(default=None, description="the output is one of these texts")
    guided_grammar: str | None = Field(default=None, description="vLLM's `grammar`")
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="vLLM's `json`, `regex`, `choice`, `grammar` or `json_object`"
    )

    @property
    def constraint(self) -> tuple[str, Constraint] | None:
        """The field that constrains the output, and the constraint.

        Raises:
            JobError: `INVALID_REQUEST`: there are two constraints, or one is out of bounds.
        """
        outputs = self.structured_outputs or StructuredOutputs()
        form = self.response_format
        given: list[tuple[str, Constraint | None]] = [
            ("response_format", None if form is None else form.constraint("response_format")),
            ("json_schema", _schema(self.json_schema, "json_schema")),
            ("grammar", _grammar(self.grammar, "grammar")),
            ("guided_json", _schema(self.guided_json, "guided_json")),
            ("guided_regex", _regex(self.guided_regex, "guided_regex")),
            ("guided_choice", _choice(self.guided_choice, "guided_choice")),
            ("guided_grammar", _grammar(self.guided_grammar, "guided_grammar")),
            ("structured_outputs", _schema(outputs.json_, "structured_outputs")),
            ("structured_outputs", _regex(outputs.regex, "structured_outputs")),
            ("structured_outputs", _choice(outputs.choice, "structured_outputs")),
            ("structured_outputs", _grammar(outputs.grammar, "structured_outputs")),
            (
                "structured_outputs",
                _schema(_ANY_OBJECT if outputs.json_object else None, "structured_outputs"),
            ),
        ]
        constraints = [(name, one) for name, one in given if one is not None]
        if len(constraints) > 1:
            first, second = constraints[0][0], constraints[1][0]
            raise invalid(f"{first} and {second} cannot be combined", second)
        return constraints[0] if constraints else None


def _schema(given: dict[str, Any] | bool | str | None, param: str) -> Constraint | None:
    """The constraint of a JSON Schema. The schema may be a text, which the engine checks."""
    if given is None or given == "":
        return None
    return (
        Constraint.json_text(given, param) if isinstance(given, str) else Constraint.json_schema(given, param)
    )


def _grammar(given: str | None, param: str) -> Constraint | None:
    return Constraint.grammar(given, param) if given else None


def _regex(given: str | None, param: str) -> Constraint | None:
    return Constraint.regex(given, param) if given else None


def _choice(given: list[str] | None, param: str) -> Constraint | None:
    return Constraint.choice(given, param) if given else None
