"""Of what the fields of requests are made. A field is honoured, or taken only at the values that change nothing.

The types say which values those are, so that the published schema is true; `only` has a sentence for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

CACHED: Final = "Not used: the prefix cache works automatically and keeps entries as long as there is room."


class Strict(BaseModel):
    """An object of a request: no unknown fields, no conversions."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )


def only(advice: str) -> WrapValidator:
    """Answers any value that the type does not allow with one sentence."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("unsupported", advice) from None

    return WrapValidator(check)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def by_form(choose: Callable[[Any], TypeAdapter[Any] | None], expected: str) -> WrapValidator:
    """Checks a union by the one member whose form a value has, so that an error names a place in that member alone."""

    def check(value: object, _: ValidatorFunctionWrapHandler) -> object:
        adapter = choose(value)
        if adapter is None:
            raise PydanticCustomError("form", "must be {expected}", {"expected": expected})
        return adapter.validate_python(value, strict=True)

    return WrapValidator(check)


def text_or_list(text: Any, items: Any, expected: str) -> WrapValidator:
    """`by_form` for a string type or a list type."""
    forms: dict[type, TypeAdapter[Any]] = {str: TypeAdapter(text), list: TypeAdapter(items)}
    return by_form(lambda value: forms.get(type(value)), expected)


def by_tag(tag: str, members: Mapping[str, Any], advice: str) -> WrapValidator:
    """`by_form` for objects: which member of a union one is, its field `tag` says."""
    adapters = {name: TypeAdapter(member) for name, member in members.items()}

    def check(value: object, _: ValidatorFunctionWrapHandler) -> object:
        if not isinstance(value, dict):
            raise PydanticKnownError("model_type", {"class_name": "object"})
        given = value.get(tag)
        if isinstance(given, str) and given in adapters:
            return adapters[given].validate_python(value, strict=True)
        error = "missing" if tag not in value else PydanticCustomError("unsupported", advice)
        raise ValidationError.from_exception_data(
            "object", [InitErrorDetails(type=error, loc=(tag,), input=given)], hide_input=True
        )

    return WrapValidator(check)


def _is_off(value: bool) -> bool:
    if value:
        raise ValueError("must be false")
    return value


def _is_on(value: bool) -> bool:
    if not value:
        raise ValueError("must be true")
    return value


Off = Annotated[bool, AfterValidator(_is_off), Field(json_schema_extra={"const": False})]
"""`Literal[False]` would take 0, even where types are strict."""
On = Annotated[bool, AfterValidator(_is_on), Field(json_schema_extra={"const": True})]
WRITTEN_AS_FRACTION = BeforeValidator(_whole)
"""1.0 is an integer to JSON and its schemas. After the limits of a type, or the published schema loses them."""
Whole = Annotated[int, WRITTEN_AS_FRACTION]
"""Token ids are not of this type, being many."""
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
ModelName = Annotated[str, Field(min_length=1, max_length=256, description="A name from `/v1/models`.")]
Nothing = Annotated[list[Any], Field(max_length=0)]
NoSettings = Annotated[dict[str, Any], Field(max_length=0)]
JsonSchema = Annotated[dict[str, Any], Field(description="A JSON schema.")]
User = Annotated[str, Field(max_length=512, description="The caller's own identifier of the end user. Not used.")]
