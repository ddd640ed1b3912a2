"""The sampling parameters as fields of a request, made from the SDK's definition: a new one there is a new field here.

A field has a type and no range. How large a value or how long a list may be, the engine's settings say, and its refusal
comes back with the name of the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Final, get_type_hints

from pydantic import Field

from chat_gateway.schemas.fields import TokenId, Whole, text_or_list
from triton_chat import types
from triton_chat.types import HELP, SamplingParams

_StopString = Annotated[str, Field(min_length=1)]
_StopStrings = list[_StopString]
Stop = Annotated[_StopString | _StopStrings, text_or_list(_StopString, _StopStrings, "a string or a list of strings")]

_BiasKey = Annotated[str, Field(pattern=r"^[0-9]+$")]
LogitBias = Annotated[dict[_BiasKey, float], Field(json_schema_extra={"additionalProperties": False})]

_JSON_TYPES: Final[Mapping[object, Any]] = {
    int | None: Whole | None,
    float | None: float | None,
    bool | None: bool | None,
    types.Stop | None: Stop | None,
    types.TokenIds | None: list[TokenId] | None,
    types.LogitBias | None: LogitBias | None,
    types.StructuredOutputs | None: dict[str, Any] | None,
}
"""What JSON has for the types in `SamplingParams`."""


def sampling_fields() -> dict[str, Any]:
    """For `pydantic.create_model`: the type and the description of each, by name."""
    hints = get_type_hints(SamplingParams)
    return {
        field.name: (_JSON_TYPES[hints[field.name]], Field(None, description=field.metadata[HELP]))
        for field in fields(SamplingParams)
    }
