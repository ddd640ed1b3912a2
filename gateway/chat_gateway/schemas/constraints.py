"""What an answer must be: OpenAI's `response_format`, vLLM's `structured_outputs` and, as it was once, `guided_*`.

Whether a schema, an expression or a grammar can be used, the model server says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from chat_gateway.schemas.fields import JsonSchema, Off, On, Strict, by_form, by_tag, only

_FIELD: Final = "structured_outputs"
_FORMATS: Final = "must be text, json_object or json_schema"
_A_SCHEMA: Final = "a JSON schema, or a string that holds one"
_FREE_SPACE: Final = "white space between the parts of JSON is the model's choice; leave it out"
_ONE_BACKEND: Final = "there is one backend, guidance; leave it out or send auto"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the model server is told, and where the caller wrote it.

    Args:
        field: the caller's.
        place: in it, of what the answer must be; the field itself by default.
    """

    outputs: Mapping[str, object]
    field: str
    place: str | None = None

    @property
    def places(self) -> dict[str, str]:
        """The fields of the model server, to the caller's."""
        place = self.place or self.field
        return {_FIELD: self.field} | {f"{_FIELD}.{kind}": place for kind in self.outputs if self.field != _FIELD}


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class NamedSchema(Strict):
    name: str | None = Field(None, description="Not used.")
    description: str | None = Field(None, description="Not used.")
    schema_: JsonSchema | None = Field(None, alias="schema", description="Without one, any JSON object.")
    strict: bool | None = Field(None, description="Not used: an answer always follows the schema.")


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: NamedSchema


_Format = TextFormat | JsonObjectFormat | JsonSchemaFormat
ResponseFormat = Annotated[
    _Format,
    by_tag("type", {"text": TextFormat, "json_object": JsonObjectFormat, "json_schema": JsonSchemaFormat}, _FORMATS),
]


def _parsed(text: str) -> object:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise PydanticCustomError("form", "must be {expected}", {"expected": _A_SCHEMA})
    return schema


_OBJECT_OR_TEXT: Final[Mapping[type, TypeAdapter[Any]]] = {
    dict: TypeAdapter(dict[str, Any]),
    str: TypeAdapter(Annotated[str, AfterValidator(_parsed)]),
}
_OR_ANY: Final[Mapping[type, TypeAdapter[Any]]] = {**_OBJECT_OR_TEXT, bool: TypeAdapter(On)}

_Schema = Annotated[JsonSchema | str, by_form(lambda value: _OBJECT_OR_TEXT.get(type(value)), _A_SCHEMA)]
_SchemaOrAny = Annotated[
    JsonSchema | str | On, by_form(lambda value: _OR_ANY.get(type(value)), f"{_A_SCHEMA}, or true")
]


class StructuredOutputs(Strict):
    """vLLM's; exactly one of json, regex, choice and grammar, or json_object, which is `json: true`."""

    json_: _SchemaOrAny | None = Field(None, alias="json", description="A JSON schema; true: any JSON object.")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = Field(None, description="In llguidance's form of Lark.")
    json_object: bool | None = Field(None, description="True: any JSON object.")
    structural_tag: Annotated[None, only("structural tags are not supported; leave it out")] = None
    whitespace_pattern: Annotated[None, only(_FREE_SPACE)] = None
    disable_any_whitespace: Annotated[Off | None, only(_FREE_SPACE)] = None
    disable_additional_properties: Annotated[
        Off | None, only("write additionalProperties into the schema; leave it out or send false")
    ] = None
    disable_fallback: bool | None = Field(None, description="Not used: there is one backend.")

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        given = self._given()
        if len(given) != 1:
            raise PydanticCustomError(
                "conflict",
                "must have exactly one of json, regex, choice, grammar and json_object: true, and has {given}",
                {"given": " and ".join(given) or "none of them"},
            )
        return self

    def constraint(self) -> Constraint:
        ((kind, value),) = self._given().items()
        return Constraint({"json" if kind == "json_object" else kind: value}, _FIELD)

    def _given(self) -> dict[str, object]:
        kinds = {
            "json": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
            "json_object": self.json_object or None,
        }
        return {kind: value for kind, value in kinds.items() if value is not None}


_GUIDED: Final = ("json", "regex", "choice", "grammar")
_ALONE: Final = (*(f"guided_{kind}" for kind in _GUIDED), _FIELD)


class ConstrainedRequest(Strict):
    """The fields of a request that say what the answer must be; one of them at most."""

    guided_json: _Schema | None = Field(None, description="Older name of structured_outputs.json.")
    guided_regex: str | None = Field(None, description="Older name of structured_outputs.regex.")
    guided_choice: list[str] | None = Field(None, description="Older name of structured_outputs.choice.")
    guided_grammar: str | None = Field(None, description="Older name of structured_outputs.grammar.")
    guided_decoding_backend: Annotated[Literal["auto", "guidance"] | None, only(_ONE_BACKEND)] = None
    guided_whitespace_pattern: Annotated[None, only(_FREE_SPACE)] = None
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = Field(
        None, description="The form of the answer; a schema is followed whether strict or not."
    )

    @field_validator(*_ALONE, "response_format")
    @classmethod
    def _one_at_most(cls, value: object, info: ValidationInfo) -> object:
        others = [name for name in _ALONE if name != info.field_name and info.data.get(name) is not None]
        if value is None or isinstance(value, TextFormat) or not others:
            return value
        raise PydanticCustomError("conflict", "cannot be combined with {other}; send one of them", {"other": others[0]})

    def constraint(self) -> Constraint | None:
        """What the answer must be; None where it is free."""
        match self.response_format:
            case JsonObjectFormat():
                return Constraint({"json": True}, "response_format")
            case JsonSchemaFormat(json_schema=named):
                schema = True if named.schema_ is None else named.schema_
                return Constraint({"json": schema}, "response_format", "response_format.json_schema.schema")
            case _:
                pass
        if self.structured_outputs is not None:
            return self.structured_outputs.constraint()
        given = {kind: getattr(self, f"guided_{kind}") for kind in _GUIDED}
        return next((Constraint({kind: it}, f"guided_{kind}") for kind, it in given.items() if it is not None), None)
