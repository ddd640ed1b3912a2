"""Python functions as tools: what a model is told of them, and what its calls come to.

    def get_weather(city: Annotated[str, "such as Paris"], days: int = 1) -> list[float]:
        "Temperatures of the next days, in degrees Celsius."

    tool = tool_of(get_weather)  # for `tools=`
    content = call(get_weather, '{"city": "Paris"}')  # for a message of the role `tool`

Types are pydantic's: JSON's own, dataclasses, enums, `Literal`, unions, pydantic models, dates and more.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, get_args, get_origin

import pydantic
import pydantic_core
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from typing_extensions import NotRequired, TypedDict

from triton_chat.errors import InvalidRequestError
from triton_chat.types import Tool, ToolCall, failure

Function = Callable[..., object]
Arguments = str | Mapping[str, object]
"""JSON text as a model writes it, or the values by name."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def tool_of(function: Function) -> Tool:
    """The tool that a model is offered for a function: its name, its docstring, and a JSON schema from its types.

    Text in `Annotated` describes a parameter: `city: Annotated[str, "such as Paris"]`.

    Raises:
        InvalidRequestError: it cannot be described, with the parameter that is in the way.
    """
    return PythonTool(function).tool


def call(function: Function, arguments: Arguments) -> str:
    """What the call comes to, as the content of a message: text as it is, anything else as JSON.

    Where the arguments do not fit or the function fails, it is `{"error": "..."}`, for the model to read.

    Raises:
        InvalidRequestError: the function cannot be a tool.
    """
    return PythonTool(function).call(arguments)


async def acall(function: Function, arguments: Arguments) -> str:
    """`call` for asyncio: a coroutine function is awaited, another runs in a thread."""
    return await PythonTool(function).acall(arguments)


class PythonTool:
    """A function that a model may call."""

    def __init__(self, function: Function) -> None:
        """Raises InvalidRequestError for a function that cannot be described."""
        self.name = _name(function)
        self._function = function
        self._arguments, parameters = _read(function, self.name)
        description = {"description": text} if (text := inspect.getdoc(function)) else {}
        self.tool: Tool = {
            "type": "function",
            "function": {"name": self.name, **description, "parameters": parameters},
        }

    @property
    def is_coroutine(self) -> bool:
        return inspect.iscoroutinefunction(self._function)

    def call(self, arguments: Arguments) -> str:
        """See `triton_chat.tools.call`. A coroutine runs in an event loop of its own.

        Raises:
            InvalidRequestError: a coroutine, where an event loop runs already.
        """
        if self.is_coroutine and _in_event_loop():
            raise InvalidRequestError(f"{self.name} is a coroutine function: use it with AsyncChatClient or `acall`")
        try:
            values = self._values(arguments)
        except ValueError as error:
            return failure(str(error))
        try:
            result = self._function(**values)
            return _text(asyncio.run(result) if inspect.iscoroutine(result) else result)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the model is told
            return failure(_named(error))

    async def acall(self, arguments: Arguments) -> str:
        """See `triton_chat.tools.acall`."""
        if not self.is_coroutine:
            return await asyncio.to_thread(self.call, arguments)
        try:
            values = self._values(arguments)
        except ValueError as error:
            return failure(str(error))
        try:
            result: Any = self._function(**values)
            return _text(await result)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the model is told
            return failure(_named(error))

    def _values(self, arguments: Arguments) -> dict[str, Any]:
        """The arguments as the function's types have them. Raises ValueError with a sentence for the model."""
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        try:
            return self._arguments.validate_json(text)
        except pydantic.ValidationError as error:
            found = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ") for one in error.errors())
            raise ValueError(f"the arguments of {self.name} do not fit: {'; '.join(found)}") from error


class Toolbox:
    """Functions by their names."""

    def __init__(self, functions: Iterable[Function]) -> None:
        """Raises InvalidRequestError for a function that cannot be described, and for two of one name."""
        self._tools: dict[str, PythonTool] = {}
        for tool in map(PythonTool, functions):
            if tool.name in self._tools:
                raise InvalidRequestError(f"there are two functions of the name {tool.name}")
            self._tools[tool.name] = tool

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    @property
    def tools(self) -> list[Tool]:
        """What a model is offered."""
        return [tool.tool for tool in self._tools.values()]

    def call(self, wanted: ToolCall) -> str:
        """What a call comes to; see `triton_chat.tools.call`."""
        tool = self._tools.get(wanted.name)
        return self._unknown(wanted) if tool is None else tool.call(wanted.arguments)

    async def acall(self, wanted: ToolCall) -> str:
        """See `triton_chat.tools.acall`."""
        tool = self._tools.get(wanted.name)
        return self._unknown(wanted) if tool is None else await tool.acall(wanted.arguments)

    def _unknown(self, wanted: ToolCall) -> str:
        return failure(f"there is no tool {wanted.name!r}; there are: {', '.join(self._tools)}")


class _Schema(GenerateJsonSchema):
    """Without titles, which only repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False


def _name(function: Function) -> str:
    name = getattr(function, "__name__", "")
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(f"a tool is a function whose name has only A-Z, a-z, 0-9, _ and -, not {name!r}")
    return str(name)


def _read(function: Function, name: str) -> tuple[pydantic.TypeAdapter[dict[str, Any]], JsonSchemaValue]:
    """What reads the arguments of a function, and their JSON schema."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except Exception as error:
        raise InvalidRequestError(f"{name} cannot be a tool: {_named(error)}") from error
    names = getattr(inspect.unwrap(function), "__globals__", {})
    adapters = _adapter({one.name: _field(one, name, names) for one in parameters})
    schema = adapters.json_schema(schema_generator=_Schema)
    schema.pop("title", None)
    return adapters, schema


def _field(parameter: inspect.Parameter, function: str, names: dict[str, Any]) -> Any:
    """The parameter as a field of a TypedDict; `names` are those that its type may use.

    Raises:
        InvalidRequestError: a call could not give it by its name, or its type cannot be told.
    """
    where = f"{function} cannot be a tool: its parameter {parameter.name}"
    if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        raise InvalidRequestError(f"{where} cannot be given by its name")
    if parameter.annotation is inspect.Parameter.empty:
        raise InvalidRequestError(f"{where} has no type")
    annotation = parameter.annotation
    if isinstance(annotation, str):  # as the source has it, under `from __future__ import annotations`
        try:
            annotation = eval(annotation, names)  # noqa: S307 - what Python itself would have evaluated
        except Exception as error:
            raise InvalidRequestError(f"{where} has a type that cannot be read: {_named(error)}") from error
    annotation = _described(annotation)
    if parameter.default is not inspect.Parameter.empty:
        annotation = NotRequired[annotation]
    try:
        _adapter({parameter.name: annotation}).json_schema()
    except Exception as error:  # whatever a type or its validators raise
        raise InvalidRequestError(f"{where} has a type that JSON schema cannot describe: {_type(parameter)}") from error
    return annotation


def _adapter(fields: Mapping[str, Any]) -> pydantic.TypeAdapter[dict[str, Any]]:
    """Of an object with these fields: a TypedDict, which has no names of its own that a parameter could clash with."""
    make: Any = TypedDict  # a type that no type checker sees
    arguments = make("Arguments", dict(fields))
    arguments.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    return pydantic.TypeAdapter(arguments)


def _described(annotation: Any) -> Any:
    """With the texts in `Annotated` as pydantic has them."""
    if get_origin(annotation) is not Annotated:
        return annotation
    kind, *notes = get_args(annotation)
    for note in notes:
        kind = Annotated[kind, pydantic.Field(description=note) if isinstance(note, str) else note]
    return kind


def _type(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _text(result: object) -> str:
    """Text as it is, all else as JSON, which has no infinity and no NaN: they are null.

    Raises:
        pydantic_core.PydanticSerializationError: what JSON cannot hold.
    """
    return result if isinstance(result, str) else pydantic_core.to_json(result, inf_nan_mode="null").decode()


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
