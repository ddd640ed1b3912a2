from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import enum
import functools
import json
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triton_chat.errors import InvalidRequestError
from triton_chat.tools import Toolbox, acall, call, tool_of
from triton_chat.types import ToolCall


class Unit(enum.Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


@dataclasses.dataclass
class Place:
    name: str
    height: float = 0.0


class Opaque: ...


def get_weather(city: Annotated[str, "such as Paris"], days: int = 1, *, unit: Unit = Unit.CELSIUS) -> dict[str, Any]:
    """The weather of the next days."""
    return {"city": city, "days": days, "unit": unit}


def everything(
    json: Place,
    copy: list[Place] | None,
    model_name: Literal["a", "b"],
    day: dt.date,
    more: dict[str, float | bool],
) -> str:
    return f"{json.name} {copy} {model_name} {day.year} {more}"


async def later(text: str) -> str:
    await asyncio.sleep(0)
    return text


def test_a_function_becomes_a_tool() -> None:
    assert tool_of(get_weather) == {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of the next days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "such as Paris"},
                    "days": {"type": "integer"},
                    "unit": {"$ref": "#/$defs/Unit"},
                },
                "required": ["city"],
                "additionalProperties": False,
                "$defs": {"Unit": {"title": "Unit", "type": "string", "enum": ["c", "f"]}},
            },
        },
    }


def test_a_tool_without_docstring_and_parameters() -> None:
    def ping() -> str:
        return "pong"

    function = tool_of(ping)["function"]
    assert function == {
        "name": "ping",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    }
    assert call(ping, "{}") == "pong"


def test_methods_are_functions() -> None:
    class Counter:
        total = 0

        def add(self, number: int) -> int:
            self.total += number
            return self.total

    counter = Counter()
    assert call(counter.add, '{"number": 2}') == "2"
    assert counter.total == 2


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.data())
def test_arguments_that_fit_the_schema_reach_the_function(data: st.DataObject) -> None:
    arguments = {
        "json": {"name": data.draw(st.text()), "height": data.draw(st.floats(allow_nan=False, allow_infinity=False))},
        "copy": data.draw(st.none() | st.lists(st.fixed_dictionaries({"name": st.text()}), max_size=3)),
        "model_name": data.draw(st.sampled_from(["a", "b"])),
        "day": data.draw(st.dates()).isoformat(),
        "more": data.draw(st.dictionaries(st.text(), st.booleans() | st.integers(-9, 9), max_size=3)),
    }
    jsonschema.validate(arguments, tool_of(everything)["function"]["parameters"])
    content = call(everything, json.dumps(arguments))
    assert content.startswith(f"{arguments['json']['name']} ")
    assert "Place(" in content or not arguments["copy"]


@pytest.mark.parametrize(
    ("function", "arguments", "content"),
    [
        (get_weather, '{"city": "北京"}', '{"city":"北京","days":1,"unit":"c"}'),
        (get_weather, {"city": "Paris", "days": 2, "unit": "f"}, '{"city":"Paris","days":2,"unit":"f"}'),
        (get_weather, '{"city": "Paris", "days": "two"}', "days: Input should be a valid integer"),
        (get_weather, '{"town": "Paris"}', "city: Field required; town: Extra inputs"),
        (get_weather, '{"city": "Par', "Invalid JSON"),
        (get_weather, "[]", "should be an object"),
    ],
)
def test_a_call_comes_to_text(function: Callable[..., object], arguments: Any, content: str) -> None:
    found = call(function, arguments)
    if content.startswith("{"):
        assert found == content
    else:
        (error,) = json.loads(found).values()
        assert error.startswith("the arguments of get_weather do not fit: ")
        assert content in error


async def test_a_call_of_a_coroutine_function() -> None:
    assert await acall(later, '{"text": "好"}') == "好"
    assert "do not fit" in await acall(later, "{}")
    with pytest.raises(InvalidRequestError, match="later is a coroutine function"):
        call(later, '{"text": "x"}')


def test_a_coroutine_function_without_an_event_loop() -> None:
    assert call(later, '{"text": "x"}') == "x"


async def test_a_plain_function_does_not_hold_up_the_event_loop() -> None:
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await acall(where, "{}") == "false"


@pytest.mark.parametrize("error", [KeyError("x"), ValueError(), RuntimeError("a\nb")])
async def test_a_function_that_fails_tells_the_model(error: Exception) -> None:
    def fail() -> None:
        raise error

    async def fail_later() -> None:
        raise error

    said = {"error": f"{type(error).__name__}: {error}".removesuffix(": ")}
    assert json.loads(await acall(fail, "{}")) == said
    assert json.loads(await acall(fail_later, "{}")) == said


async def test_a_function_that_exits_ends_nothing() -> None:
    def leave() -> None:
        sys.exit("no more")

    async def leave_later() -> None:
        sys.exit("no more")

    said = '{"error": "SystemExit: no more"}'
    assert [call(leave, "{}"), await acall(leave, "{}"), await acall(leave_later, "{}")] == [said] * 3
    assert await asyncio.to_thread(call, leave_later, "{}") == said


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_json_does_not_have_is_null(number: float) -> None:
    def measure() -> dict[str, float]:
        return {"x": number}

    assert call(measure, "{}") == '{"x":null}'


def test_a_result_that_is_no_json_tells_the_model() -> None:
    def opaque() -> Opaque:
        return Opaque()

    assert "Opaque" in json.loads(call(opaque, "{}"))["error"]


def untyped(city) -> None: ...
def starred(*cities: str) -> None: ...
def positional(city: str, /) -> None: ...
def odd(first: int, place: Opaque) -> None: ...
def callback(done: Callable[[int], int]) -> None: ...
def nowhere(city: Nowhere) -> None: ...  # noqa: F821
def no_attribute(days: int, city: json.nothing) -> None: ...  # type: ignore[name-defined]
def no_number(city: 1 / 0) -> None: ...  # type: ignore[valid-type]
def no_type(city: Any) -> None: ...


no_type.__annotations__["city"] = "int |"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (untyped, "untyped cannot be a tool: its parameter city has no type"),
        (starred, "its parameter cities cannot be given by its name"),
        (positional, "its parameter city cannot be given by its name"),
        (odd, "its parameter place has a type that JSON schema cannot describe: Opaque"),
        (callback, "its parameter done has a type that JSON schema cannot describe"),
        (
            nowhere,
            "nowhere cannot be a tool: its parameter city has a type that cannot be read: NameError: name 'Nowhere'",
        ),
        (no_attribute, "its parameter city has a type that cannot be read: AttributeError"),
        (no_type, "its parameter city has a type that cannot be read: SyntaxError"),
        (no_number, "its parameter city has a type that cannot be read: ZeroDivisionError"),
        (lambda: 1, "not '<lambda>'"),
        (functools.partial(get_weather, "x"), "a tool is a function whose name"),
        (type, "type cannot be a tool"),
    ],
)
def test_what_cannot_be_described_says_why(function: Callable[..., object], words: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        tool_of(function)
    assert words in str(raised.value)


async def test_a_toolbox_knows_its_functions_by_name() -> None:
    box = Toolbox([get_weather, later])
    assert [tool["function"]["name"] for tool in box.tools] == ["get_weather", "later"]
    assert "later" in box
    assert "never" not in box
    assert await box.acall(ToolCall("1", "later", '{"text": "x"}')) == "x"
    unknown = ToolCall("2", "never", "{}")
    assert box.call(unknown) == await box.acall(unknown)
    assert json.loads(box.call(unknown)) == {"error": "there is no tool 'never'; there are: get_weather, later"}


def test_two_functions_of_one_name() -> None:
    with pytest.raises(InvalidRequestError, match="two functions of the name get_weather"):
        Toolbox([get_weather, get_weather])
