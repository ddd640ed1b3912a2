"""Functions that the model may call, and which of them it should. Source: `openai.types.chat`, see `schemas.chat`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from chat_gateway.schemas.fields import CACHED, JsonSchema, Strict, by_form, only

_FUNCTIONS_ONLY: Final = "only tools of type function are supported"
_CHOICES: Final = (
    'none, auto, required, {"type": "function", "function": {"name": ...}}, or allowed_tools as in OpenAI\'s API'
)


class OldFunction(Strict):
    """One of `functions`."""

    name: str
    description: str | None = None
    parameters: JsonSchema | None = Field(None, description="JSON schema of its arguments; none: it takes nothing.")

    def to_tool(self) -> dict[str, object]:
        return {"type": "function", "function": self.model_dump(exclude_none=True)}


class FunctionDefinition(OldFunction):
    """The function of a tool."""

    strict: bool | None = Field(None, description="The arguments of a call follow the schema.")


class Tool(Strict):
    type: Annotated[Literal["function"], only(_FUNCTIONS_ONLY)]
    function: FunctionDefinition
    strict: bool | None = Field(None, description="The same as function.strict, which takes precedence.")
    cache_control: dict[str, Any] | None = Field(None, description=CACHED)

    def to_model(self) -> dict[str, object]:
        strict = self.strict if self.function.strict is None else self.function.strict
        return self.function.model_copy(update={"strict": strict}).to_tool()


class FunctionName(Strict):
    name: str

    def to_choice(self) -> dict[str, object]:
        return {"type": "function", "function": {"name": self.name}}


class NamedTool(Strict):
    type: Annotated[Literal["function"], only(_FUNCTIONS_ONLY)]
    function: FunctionName

    def to_model(self) -> dict[str, object]:
        return self.function.to_choice()


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolsChoice(Strict):
    """Only some of the tools, for this answer: as if the others had not been sent."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools

    @property
    def names(self) -> list[str]:
        return [tool.function.name for tool in self.allowed_tools.tools]


_Mode = Literal["none", "auto", "required"]
_MODES: Final[TypeAdapter[Any]] = TypeAdapter(_Mode)
_OBJECTS: Final[Mapping[object, TypeAdapter[Any]]] = {
    "function": TypeAdapter(NamedTool),
    "allowed_tools": TypeAdapter(AllowedToolsChoice),
}


def _form(value: object) -> TypeAdapter[Any] | None:
    if isinstance(value, str):
        return _MODES
    kind = value.get("type") if isinstance(value, dict) else None
    return _OBJECTS.get(kind) if isinstance(kind, str) else None


ToolChoice = Annotated[_Mode | NamedTool | AllowedToolsChoice, by_form(_form, _CHOICES)]

_OLD_MODES: Final[TypeAdapter[Any]] = TypeAdapter(Literal["none", "auto"])
_NAME: Final[TypeAdapter[Any]] = TypeAdapter(FunctionName)

FunctionChoice = Annotated[
    Literal["none", "auto"] | FunctionName,
    by_form(lambda value: {str: _OLD_MODES, dict: _NAME}.get(type(value)), 'none, auto or {"name": ...}'),
]
