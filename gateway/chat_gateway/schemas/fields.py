"""Of what the fields of requests are made. A field is honoured, or taken only at the values that change nothing.

The types say which values those are, so that the published schema is true; `only` has a sentence for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

MAX_LOGPROBS: Final = 20
MAX_COUNT: Final = 2**31 - 1
"""What a tensor can hold."""


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


def whole(value: object) -> object:
    """For fields that are integers: 1.0 is one to JSON and its schemas. Token ids are not among them, being many."""
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
TokenId = Annotated[int, Field(ge=0, le=MAX_COUNT)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
ModelName = Annotated[str, Field(min_length=1, max_length=256, description="A name from `/v1/models`.")]
Nothing = Annotated[list[Any], Field(max_length=0)]
NoSettings = Annotated[dict[str, Any], Field(max_length=0)]
User = Annotated[str, Field(max_length=512, description="The caller's own identifier of the end user. Not used.")]
