"""Calls out of the text of a region, while it is being written."""

from __future__ import annotations

import enum
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import regex  # type: ignore[import-untyped]  # as transformers does: it knows what may yet match
from transformers.utils.chat_parsing import parse_response

from chat_engine.answer_format import AnswerFormat, CallSyntax, Keys, XmlParameters
from chat_engine.request import ToolCallDelta
from chat_engine.text.answer_regions import CALLS, call_template

Tools = Sequence[Mapping[str, Any]]

_STRING = r'"(?:[^"\\]|\\.)*+"'
_BETWEEN = "[],; \t\r\n"  # what stands around objects
_WORD = regex.compile(r"\w")
_MAX_NAME = 512  # characters within which a call has its name; an object may still have it later, told at its end


class State(enum.Enum):
    """What a region has turned out to be."""

    OPEN = "not known yet"
    CALL = "calls"
    TEXT = "text, from `text_from` on"


class CallReader(Protocol):
    """Reads one region. Calls come as OpenAI's deltas, as soon as they are certain.

    Attributes:
        state: what the region is.
        text_from: where in the region, without its opening marker, text begins; -1: with its opening marker.
        index: of the next call.
    """

    state: State
    text_from: int
    index: int

    def feed(self, text: str) -> list[ToolCallDelta]:
        """What the next characters have made certain. Not called any more once the state is TEXT."""
        ...

    def close(self, marker: str, /) -> list[ToolCallDelta]:
        """What is left at the end, which that marker has made, or the end of the answer."""
        ...


def call_reader(answer_format: AnswerFormat, tools: Tools, marker: str, index: int) -> CallReader:
    """For a region which that marker has opened, and whose first call has that index."""
    syntax = answer_format.call
    if syntax is None:
        return _Whole(answer_format, tools, marker, index)
    if syntax.keys:
        return _Objects(syntax, syntax.keys, tools, index)
    if isinstance(syntax.written.arguments, XmlParameters):
        return _Xml(answer_format, syntax.written.arguments, tools, marker, index)
    return _Named(answer_format, marker, index)


class _Reader:
    """What they have in common."""

    def __init__(self, index: int) -> None:
        self.state = State.OPEN
        self.text_from = -1
        self.index = index

    def _begun(self, name: str) -> ToolCallDelta:
        self.state = State.CALL
        self.index += 1
        return ToolCallDelta(self.index - 1, id=f"call_{secrets.token_hex(12)}", name=name)

    def _more(self, arguments: str) -> list[ToolCallDelta]:
        return [ToolCallDelta(self.index - 1, arguments=arguments)] if arguments else []

    def _is_text(self, text_from: int = -1) -> None:
        self.state, self.text_from = State.TEXT, text_from


class _Whole(_Reader):
    """A format of which only the template knows how to read it: when all is there."""

    def __init__(self, answer_format: AnswerFormat, tools: Tools, marker: str, index: int) -> None:
        super().__init__(index)
        self._format = answer_format
        self._tools = tools
        self._text = marker

    def feed(self, text: str) -> list[ToolCallDelta]:
        self._text += text
        return []

    def close(self, marker: str) -> list[ToolCallDelta]:
        calls = _parsed(self._format, self._text + marker, self._tools)
        if not calls:
            self._is_text()
            return []
        return [delta for name, arguments in calls for delta in (self._begun(name), *self._more(_as_text(arguments)))]


class _Head(_Reader):
    """A name, by the pattern of the template, before the arguments."""

    def __init__(self, answer_format: AnswerFormat, marker: str, index: int) -> None:
        super().__init__(index)
        self._pattern = call_template(answer_format).fields[CALLS].open_re
        self._text = marker
        self._head = 0  # characters of it

    def _look_for_name(self) -> list[ToolCallDelta]:
        """The begun call, once its name is complete."""
        match = self._pattern.match(self._text, partial=True)
        if match is None or match.end() > _MAX_NAME:
            self._is_text()
            return []
        if match.partial:
            return []
        self._head = match.end()
        return [self._begun(match["name"].strip())]


class _Named(_Head):
    """A name, then arguments as a JSON object."""

    def __init__(self, answer_format: AnswerFormat, marker: str, index: int) -> None:
        super().__init__(answer_format, marker, index)
        self._arguments = _Arguments()
        self._length = 0
        self._rest = ""

    def feed(self, text: str) -> list[ToolCallDelta]:
        self._length += len(text)
        deltas: list[ToolCallDelta] = []
        if self.state is State.OPEN:
            self._text += text
            deltas = self._look_for_name()
            if not deltas:
                return []
            text = self._text[self._head :]
        arguments, rest = self._arguments.feed(text)
        self._rest += rest
        if word := _WORD.search(self._rest, len(self._rest) - len(rest)):
            self._is_text(self._length - len(self._rest) + word.start())
        return deltas + self._more(arguments)

    def close(self, _: str) -> list[ToolCallDelta]:
        if self.state is State.OPEN:
            self._is_text()
            return []
        return self._more(self._arguments.close())


class _Xml(_Head):
    """A name, then arguments as tags, which the template reads when all are there."""

    def __init__(self, answer_format: AnswerFormat, tags: XmlParameters, tools: Tools, marker: str, index: int) -> None:
        super().__init__(answer_format, marker, index)
        self._format = answer_format
        self._tags = tags
        self._tools = tools

    def feed(self, text: str) -> list[ToolCallDelta]:
        self._text += text
        return self._look_for_name() if self.state is State.OPEN else []

    def close(self, marker: str) -> list[ToolCallDelta]:
        if self.state is State.OPEN:
            self._is_text()
            return []
        calls = _parsed(self._format, self._text + marker, self._tools)
        arguments = _as_text(calls[0][1]) if calls else "{}"
        return self._more(arguments if marker else self._unfinished(arguments))

    def _unfinished(self, complete: str) -> str:
        """Without the end of the object, and with what there is of the next parameter."""
        arguments = complete.removesuffix("}")
        _, tag, begun = self._text[self._head :].rpartition(self._tags.before_key)
        key, end, value = begun.partition(self._tags.after_key.strip("\n"))
        if not tag or not end or self._tags.after_value.strip() in value:
            return arguments
        value = _without_beginning(value.removeprefix("\n"), self._tags.after_value)
        written = json.dumps(value, ensure_ascii=False).removesuffix('"')
        return f"{arguments}{', ' if arguments != '{' else ''}{json.dumps(key, ensure_ascii=False)}: {written}"


class _Objects(_Reader):
    """JSON objects that are calls: one, several, or a list of them.

    The usual order, name before arguments, is streamed; any other is read when the object is complete.
    """

    def __init__(self, syntax: CallSyntax, keys: Keys, tools: Tools, index: int) -> None:
        super().__init__(index)
        self._keys = keys
        self._name = regex.compile(rf'\s*\{{\s*"{regex.escape(keys.name)}"\s*:\s*({_STRING})')
        self._to_arguments = regex.compile(rf'\s*,\s*"{regex.escape(keys.arguments)}"\s*:\s*(?=\{{)')
        self._known = {str(_function(tool).get("name")) for tool in tools} if syntax.known_names else None
        self._length = 0
        self._object = ""  # the text of the one being read
        self._from = 0  # where in the region it begins
        self._read = 0  # how much of it is behind us
        self._balance = _Balance()
        self._arguments: _Arguments | None = None
        self._named = False  # whether this one's name is told
        self._plain = False  # whether this one is read when it is complete
        self._rest = ""

    def feed(self, text: str) -> list[ToolCallDelta]:
        self._length += len(text)
        deltas: list[ToolCallDelta] = []
        while text and self.state is not State.TEXT:
            text = self._feed_object(text, deltas) if self._object else self._between(text)
        return deltas

    def close(self, _: str) -> list[ToolCallDelta]:
        if self.state is State.OPEN:
            self._is_text()
        elif self._object and not self._named:
            self._is_no_call()
        elif self._object:
            return self._cut()
        return []

    def _between(self, text: str) -> str:
        """Looks for the next object; gives the text from there on."""
        if not self._rest:
            text = text.lstrip(_BETWEEN)
            if not text:
                return ""
            if text[0] == "{":
                self._object, self._from = "{", self._length - len(text)
                self._read, self._balance = 0, _Balance()
                self._arguments, self._named, self._plain = None, False, False
                self._balance.end("{")
                return text[1:]
            if self.state is State.OPEN:
                self._is_text()
                return ""
        self._rest += text
        if word := _WORD.search(self._rest, len(self._rest) - len(text)):
            self._is_text(self._length - len(self._rest) + word.start())
        return ""

    def _feed_object(self, text: str, deltas: list[ToolCallDelta]) -> str:
        """Reads on; gives what is behind the object."""
        end = self._balance.end(text)
        mine, behind = (text, "") if end is None else (text[:end], text[end:])
        self._object += mine
        if self._arguments is None and not self._plain:
            deltas += self._look_for_arguments()
            if self.state is State.TEXT:
                return behind
        if self._arguments is not None:
            arguments, _ = self._arguments.feed(self._object[self._read :])
            self._read = len(self._object)
            deltas += self._more(arguments)
        if end is not None:
            deltas += self._complete()
            self._object = ""
        return behind

    def _look_for_arguments(self) -> list[ToolCallDelta]:
        deltas = []
        if not self._named:
            match = self._name.match(self._object, partial=True)
            if match is None or match.partial:
                self._plain = match is None or len(self._object) > _MAX_NAME
                return []
            name = _loads(match[1])
            if not name or (self._known is not None and name not in self._known):
                self._is_no_call()
                return []
            deltas.append(self._begun(name))
            self._named, self._read = True, match.end()
        match = self._to_arguments.match(self._object, self._read, partial=True)
        if match is None:
            self._plain = True
        elif not match.partial:
            self._arguments, self._read = _Arguments(), match.end()
        return deltas

    def _complete(self) -> list[ToolCallDelta]:
        """The object is there; what has not been told of it is."""
        if self._arguments is not None:
            return []
        value = _loads(self._object)
        value = value if isinstance(value, dict) else {}
        if self._named:
            told = []
        else:
            name = value.get(self._keys.name)
            if not (isinstance(name, str) and name) or (self._known is not None and name not in self._known):
                self._is_no_call()
                return []
            told = [self._begun(name)]
        if not value:
            return self._cut()
        return told + self._more(_as_text(value.get(self._keys.arguments)))

    def _is_no_call(self) -> None:
        self._is_text(-1 if self.state is State.OPEN else self._from)

    def _cut(self) -> list[ToolCallDelta]:
        """What there is of the arguments, where the object is not whole."""
        if self._arguments is not None:
            return []
        _, _, begun = self._object.partition(f'"{self._keys.arguments}"')
        return self._more(begun.lstrip(": \n"))


class _Arguments:
    """The arguments of a call, as the characters of a JSON object."""

    def __init__(self) -> None:
        self._begun = False
        self._ended = False
        self._balance = _Balance()
        self._other = ""  # written instead of an object

    def feed(self, text: str) -> tuple[str, str]:
        """What belongs to them, and what is behind."""
        if self._ended:
            return "", text
        if not self._begun:
            text = text if self._other else text.lstrip()
            if not text or self._other or text[0] != "{":
                self._other += text
                return "", ""
            self._begun = True
        end = self._balance.end(text)
        self._ended = end is not None
        return (text, "") if end is None else (text[:end], text[end:])

    def close(self) -> str:
        """What comes instead of an object; nothing where that has come."""
        other = self._other.strip()
        return "{}" if other == "null" else other


class _Balance:
    """Finds where a JSON object ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._string = False
        self._escaped = False

    def end(self, text: str) -> int | None:
        """The place behind its last character, if that is in this text, which follows on the last one."""
        for place, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._string:
                self._escaped = char == "\\"
                self._string = char != '"'
            elif char == '"':
                self._string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place + 1
        return None


def _parsed(answer_format: AnswerFormat, text: str, tools: Tools) -> list[tuple[str, Any]]:
    """The calls that the template finds in the text of a region; none where it cannot read it."""
    try:
        found = parse_response(text, call_template(answer_format), prefix="", tools=[dict(tool) for tool in tools])
        calls = found.get(CALLS) or []
        functions = [_function(call) for call in (calls if isinstance(calls, list) else [calls])]
        return [(str(function["name"]), function.get("arguments")) for function in functions]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # what it raises at nonsense
        return []


def _without_beginning(text: str, marker: str) -> str:
    """A text that is cut where a marker may have begun."""
    lengths = range(min(len(text), len(marker)), 0, -1)
    return next((text[:-length] for length in lengths if marker.startswith(text[-length:])), text)


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Mapping[str, Any] = tool.get("function", tool)
    return function


def _as_text(arguments: object) -> str:
    """Arguments as the text of a JSON object; some models write that text itself."""
    if isinstance(arguments, str):
        return arguments
    return "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def _loads(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
