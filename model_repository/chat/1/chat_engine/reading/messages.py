"""The messages of a conversation, in the shapes of OpenAI's API, as clients send them and echo them back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chat_engine.errors import InvalidArgumentError, field_name
from chat_engine.reading.checks import check_json, read_json, show, validated

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<unfit>u0000|u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)  # in JSON

Place = tuple[str | int, ...]
Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Call:
    """A call of a tool; `text` is the arguments as the caller wrote them, empty where they came as an object."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    text: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        content: what was said; of `tool` what it returned.
        name: of the speaker, or of the tool.
        reasoning: of an assistant, before it answered.
        calls: what an assistant called.
        call_id: of `tool`: which call it answers.
    """

    role: Role
    content: str
    name: str | None = None
    reasoning: str | None = None
    calls: tuple[Call, ...] = ()
    call_id: str | None = None

    def turn(self) -> dict[str, Any]:
        """For `ChatTemplate`."""
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments, "arguments_text": call.text},
            }
            for call in self.calls
        ]
        optional = {
            "name": self.name,
            "reasoning_content": self.reasoning,
            "tool_calls": calls or None,
            "tool_call_id": self.call_id,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        return {"role": self.role, "content": self.content, **given}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Echoed(BaseModel):
    """Of an answer: clients send back whatever fields came with it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _EchoedPart(_Echoed):
    type: Literal["text"]
    text: str


class _Spoken(_Strict):
    role: Role
    name: str | None = None


class _Result(_Strict):
    role: Literal["tool"]
    tool_call_id: str = Field(min_length=1)
    name: str | None = None


class _Function(_Echoed):
    name: str = Field(min_length=1)
    arguments: Any = None


class _Call(_Echoed):
    id: str = Field(min_length=1)
    type: Literal["function"] | None = "function"
    function: _Function


class _Answer(_Echoed):
    role: Literal["assistant"]
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


_FORMS: dict[str, type[_Spoken | _Answer | _Result]] = {"assistant": _Answer, "tool": _Result}
_NAMES = frozenset(name for form in (_Spoken, _Answer, _Result) for name in form.model_fields)


def read_messages(raw: Sequence[object]) -> list[Message]:
    """Messages out of JSON. Raises InvalidArgumentError."""
    messages: list[Message] = []
    called: dict[str, str] = {}  # the names of tools, by the ids of their calls
    for index, one in enumerate(raw):
        place: Place = ("messages", index)
        check_json(one, *place)
        message = _message(place, one, called)
        called |= {call.id: call.name for call in message.calls}
        messages.append(message)
    return messages


def _message(place: Place, raw: object, called: Mapping[str, str]) -> Message:
    if not isinstance(raw, dict):
        raise InvalidArgumentError(
            f"must be an object with a role and a content (got {show(raw)})", field=field_name(*place)
        )
    given = {name: value for name, value in raw.items() if value is not None or name not in _NAMES}
    content = given.pop("content", None)
    role = given.get("role")
    shape = _FORMS[role] if isinstance(role, str) and role in _FORMS else _Spoken
    read = validated(shape, given, *place)
    match read:
        case _Answer():
            return _answer(place, read, content)
        case _Result():
            return _result(place, read, _said(place, content, _Part), called)
        case _:
            return Message(read.role, _said(place, content, _Part), read.name)


def _answer(place: Place, read: _Answer, content: object) -> Message:
    reasoning = read.reasoning_content if read.reasoning is None else read.reasoning
    calls = tuple(_call((*place, "tool_calls", index), call) for index, call in enumerate(read.tool_calls or ()))
    said = "" if content is None and (calls or reasoning) else _said(place, content, _EchoedPart)
    return Message("assistant", said, read.name, reasoning or None, calls)


def _result(place: Place, read: _Result, content: str, called: Mapping[str, str]) -> Message:
    if read.tool_call_id not in called:
        raise InvalidArgumentError(
            f"no assistant's message before it has a call with this id (got {show(read.tool_call_id)})",
            field=field_name(*place, "tool_call_id"),
        )
    name = read.name or called[read.tool_call_id]
    return Message("tool", content, name, call_id=read.tool_call_id)


def _call(place: Place, call: _Call) -> Call:
    given = call.function.arguments
    place = (*place, "function", "arguments")
    text = _ESCAPE.sub(_readable, given) if isinstance(given, str) and given.strip() else ""
    arguments = read_json(field_name(*place), text) if text else given
    if given is None or (isinstance(given, str) and not text):
        arguments = {}
    if not isinstance(arguments, dict):
        raise InvalidArgumentError(f"must be a JSON object (got {show(arguments)})", field=field_name(*place))
    check_json(arguments, *place)
    return Call(call.id, call.function.name, arguments, text)


def _readable(escape: re.Match[str]) -> str:
    """NUL and half a surrogate pair are valid JSON, which a model may have written, and no text that can be shown."""
    return r"\ufffd" if escape["unfit"] else escape[0]


def _said(place: Place, content: object, part: type[_Part | _EchoedPart]) -> str:
    """Parts are joined by a line break."""
    if isinstance(content, str):
        return content
    place = (*place, "content")
    if not isinstance(content, list):
        wanted = "a string, or a list of parts of the type text"
        wrong = f"{wanted}, is required" if content is None else f"must be {wanted} (got {show(content)})"
        raise InvalidArgumentError(wrong, field=field_name(*place))
    parts = (_of_text(part, one, (*place, index)) for index, one in enumerate(content))
    return "\n".join(parts)


def _of_text(part: type[_Part | _EchoedPart], raw: object, place: Place) -> str:
    kind = raw.get("type") if isinstance(raw, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise InvalidArgumentError(
            f"only parts of the type text are supported (got {show(kind)})", field=field_name(*place, "type")
        )
    return validated(part, raw, *place).text
