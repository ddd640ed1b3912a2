"""`chat_parameters`: what a request says about its conversation beside the messages; OpenAI's shapes, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError, field_name
from chat_engine.reading.checks import at_most, check_json, decode, read_json, show, unknown, validated

TEMPLATE_OPTIONS = ("add_generation_prompt", "continue_final_message")
CHOICES = ("none", "auto", "required")
_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def _check_name(name: str) -> str:
    if not _FUNCTION_NAME.fullmatch(name):
        raise PydanticCustomError("function_name", "must be 1 to 64 letters (a to z), digits, _ and -")
    return name


def _check_schema(schema: object) -> object:
    """Its shape alone: what is in it is checked where a grammar is made of it."""
    if schema is None or (isinstance(schema, dict) and schema.get("type", "object") == "object"):
        _Shape.model_validate(schema or {})
        return schema
    raise PydanticCustomError("schema", "must be a JSON schema of the type object")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _check_subschema(schema: object) -> object:
    """True and false are schemas too."""
    if not isinstance(schema, bool):
        _Shape.model_validate(schema)
    return schema


def _check_types(types: object) -> object:
    given = types if isinstance(types, list) else [types]
    if all(isinstance(one, str) for one in given):
        return types
    raise PydanticCustomError("types", "must be the name of a type or a list of names")


_Subschema = Annotated[Any, AfterValidator(_check_subschema)]
_Length = Annotated[int, Field(ge=0)]


class _Shape(BaseModel):
    """Of a JSON schema, what is read here: that of the arguments, and those that it is composed of."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Annotated[Any, AfterValidator(_check_types)] = ""
    ref: str = Field("", alias="$ref")
    defs: dict[str, _Subschema] = Field({}, alias="$defs")
    definitions: dict[str, _Subschema] = {}
    properties: dict[str, _Subschema] = {}
    required: list[str] = []
    allOf: list[_Subschema] = []  # noqa: N815 - JSON Schema's names
    anyOf: list[_Subschema] = []  # noqa: N815
    oneOf: list[_Subschema] = []  # noqa: N815
    enum: list[Any] = []
    pattern: str = ""
    minLength: _Length = 0  # noqa: N815
    maxLength: _Length = 0  # noqa: N815


class Function(_Strict):
    """A function that the model may call; `parameters` is a JSON schema of its arguments, none meaning none."""

    name: Annotated[str, AfterValidator(_check_name)]
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, BeforeValidator(_check_schema)] = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """Of a JSON object."""
        return {"type": "object", "properties": {}} if self.parameters is None else self.parameters


class Tool(_Strict):
    """As OpenAI has it."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """What chat templates are made for; `strict` says how to sample."""
        function = {"name": self.function.name, "description": self.function.description}
        given = {name: value for name, value in function.items() if value is not None}
        return {"type": self.type, "function": {**given, "parameters": self.function.schema_of_arguments}}


class _NamedFunction(_Strict):
    name: str


class NamedTool(_Strict):
    """The choice of one function."""

    type: Literal["function"]
    function: _NamedFunction


def _check_flag(value: object) -> object:
    if not isinstance(value, bool):
        raise PydanticCustomError("flag", "must be true or false")
    return value


Flag = Annotated[bool, BeforeValidator(_check_flag)]


class ChatParameters(_Strict):
    """What goes with messages; None and an empty list mean not given.

    `tool_choice` by default is `auto` with tools. `parse` false: reasoning and calls stay in the text.
    """

    tools: Annotated[tuple[Tool, ...], Field(strict=False)] = ()
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Flag = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    parse: Flag = True
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag | None = None

    @property
    def named_tool(self) -> str | None:
        """The one that must be called."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        return self.tool_choice == "required" or self.named_tool is not None

    @property
    def usable_tools(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        if self.tool_choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.named_tool in (None, tool.function.name))

    @property
    def shown_tools(self) -> tuple[Tool, ...]:
        """Those that the chat template shows to the model: all, or none where none may be called."""
        return () if self.tool_choice == "none" else self.tools

    def with_options(self, options: Mapping[str, bool | None]) -> ChatParameters:
        """With the template's options as they were given elsewhere. Raises InvalidArgumentError: given in two ways."""
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            here = getattr(self, name)
            if here not in (None, value):
                raise InvalidArgumentError(f"given twice, as {here} and as {value}; give it once", field=name)
        return self.model_copy(update=given) if given else self

    def check_not_given(self) -> None:
        """Raises InvalidArgumentError for the first that is, since there are no messages."""
        for name in type(self).model_fields:
            if name in self.model_fields_set:
                value = getattr(self, name)
                shown = f" (got {value})" if isinstance(value, bool) else ""
                raise InvalidArgumentError(f"only for messages{shown}", field=name)


NOTHING = ChatParameters()


def read_chat_parameters(raw: bytes | None, config: EngineConfig) -> ChatParameters:
    """Out of JSON. Raises InvalidArgumentError."""
    if raw is None:
        return NOTHING
    at_most("chat_parameters", len(raw), config.max_prompt_bytes, "bytes")
    parsed = read_json("chat_parameters", decode("chat_parameters", raw))
    if not isinstance(parsed, dict):
        raise InvalidArgumentError(f"must be a JSON object (got {show(parsed)})", field="chat_parameters")
    for name, value in parsed.items():
        if name not in ChatParameters.model_fields:
            raise unknown(name, value, ChatParameters.model_fields)
        check_json(value, name)
    given = _not_null(parsed)
    if isinstance(given.get("tools"), list):
        at_most("tools", len(given["tools"]), config.max_tools, "tools")
    if isinstance(given.get("tool_choice"), dict):
        given["tool_choice"] = validated(NamedTool, given["tool_choice"], "tool_choice")
    elif given.get("tool_choice", "auto") not in CHOICES:
        raise InvalidArgumentError(
            f"must be {', '.join(CHOICES)}, or an object that names a function (got {show(given['tool_choice'])})",
            field="tool_choice",
        )
    if isinstance(kwargs := given.get("chat_template_kwargs"), dict):
        given["chat_template_kwargs"] = _not_null(kwargs)
    chat = validated(ChatParameters, given)
    _check_tools(chat)
    return chat


def _not_null(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _check_tools(chat: ChatParameters) -> None:
    seen: set[str] = set()
    for index, tool in enumerate(chat.tools):
        name = tool.function.name
        if name in seen:
            raise InvalidArgumentError(
                f"two tools have the name {name}", field=field_name("tools", index, "function", "name")
            )
        seen.add(name)
    named = chat.named_tool
    if named is not None and named not in seen:
        there = f"; there are {', '.join(sorted(seen))}" if seen else "; give tools"
        raise InvalidArgumentError(f"no tool has the name {show(named)}{there}", field="tool_choice.function.name")
    if chat.tool_choice not in (None, "none") and not seen:
        raise InvalidArgumentError(f"{chat.tool_choice} needs tools; give some, or leave it out", field="tool_choice")
