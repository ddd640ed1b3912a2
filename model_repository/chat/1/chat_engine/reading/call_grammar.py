"""Grammars for answers that are calls of tools: valid by construction, in the syntax that the model was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from chat_engine.answer_format import AnswerFormat, CallSyntax, XmlParameters
from chat_engine.reading.lark import ANY, NOTHING, Lark, json_rule
from chat_engine.reading.tool_schemas import closed, parameters, types_of

_SHARED = ("$defs", "definitions", "$schema")


@dataclass(frozen=True)
class Signature:
    """A function that may be called.

    Attributes:
        arguments: their JSON schema, of an object.
        strict: whether everything in the schema must be understood; else what is not does not count.
    """

    name: str
    arguments: Mapping[str, Any]
    strict: bool = False


class CallGrammar:
    """Makes the grammars for one model.

    Args:
        lark: of its tokenizer.
        answer_format: how it writes reasoning.
        syntax: how it writes calls.
    """

    def __init__(self, lark: Lark, answer_format: AnswerFormat, syntax: CallSyntax) -> None:
        self._lark = lark
        self._format = answer_format
        self._syntax = syntax

    def answer(self, functions: Sequence[Signature], *, parallel: bool, prefix: str) -> str:
        """Of an answer that is a call, or several, behind what the model may think first.

        Args:
            functions: those that may be called, at least one.
            parallel: whether there may be several calls.
            prefix: what the prompt has written of the answer.
        """
        reasoning = self._lark.reasoning("reasoning", self._format, prefix)
        return "\n".join(["start: reasoning calls", reasoning, self.calls(functions, parallel=parallel)])

    def calls(self, functions: Sequence[Signature], *, parallel: bool) -> str:
        """Rules for the calls alone, the first of them called `calls`."""
        return "\n".join(self._calls(functions, self._syntax.written.before_all, parallel=parallel))

    def opened(self, functions: Sequence[Signature], *, parallel: bool) -> str:
        """Of what follows once the model itself has begun to call, up to the end of that call.

        It begins behind the marker, or with the call where nothing marks one. Where the marker begins a list of calls,
        it ends with the list.
        """
        written, markers = self._syntax.written, self._syntax.opens or ()
        for marker in markers:
            if marker in written.before_all:
                rest = written.before_all.partition(marker)[2]
                return "\n".join(["start: calls", *self._calls(functions, rest, parallel=parallel)])
        marker = next((marker for marker in markers if marker in written.before_name), "")
        rest = written.before_name.partition(marker)[2] if marker else written.before_name
        return "\n".join(["start: call", *self._call(functions, rest)])

    def _calls(self, functions: Sequence[Signature], before_all: str, *, parallel: bool) -> Iterator[str]:
        written, literal = self._syntax.written, self._lark.literal
        further = f"({literal(written.between)} call)*" if parallel else ""
        yield f"calls: {literal(before_all)} call {further} {literal(written.after_all)}"
        yield from self._call(functions, written.before_name)

    def _call(self, functions: Sequence[Signature], before_name: str) -> Iterator[str]:
        written, literal = self._syntax.written, self._lark.literal
        yield f"call: {literal(before_name)} function {literal(written.after_arguments)}"
        names = (f"{literal(function.name + written.before_arguments)} f{i}" for i, function in enumerate(functions))
        yield f"function: {' | '.join(names)}"
        for i, function in enumerate(functions):
            yield from self._arguments(f"f{i}", function)

    def _arguments(self, rule: str, function: Signature) -> Iterator[str]:
        form = self._syntax.written.arguments
        if form == "json":
            yield f"{rule}: {json_rule(closed(function.arguments), lenient=not function.strict)}"
        else:
            yield from self._parameters(rule, function, form)

    def _parameters(self, rule: str, function: Signature, form: XmlParameters) -> Iterator[str]:
        """In the order of the schema. What may be a text is written as it is, any other value as JSON."""
        literal, schema = self._lark.literal, function.arguments
        properties, required = parameters(schema)
        places = [f"{rule}_{i}" if name in required else f"{rule}_{i}?" for i, name in enumerate(properties)]
        yield f"{rule}: {' '.join(places) or NOTHING}"
        shared = {name: schema[name] for name in _SHARED if name in schema}
        for i, (name, value) in enumerate(properties.items()):
            own, types = f"{rule}_{i}", types_of(value, schema)
            if texts := _texts(value):
                rest = f"({' | '.join(map(literal, texts))}) {literal(form.after_value)}"
            elif types and "string" not in types:
                rest = f"{own}_value {literal(form.after_value)}"
                yield f"{own}_value: {json_rule({**value, **shared}, lenient=not function.strict)}"
            else:
                rest = f"{own}_text"
                yield self._lark.up_to(rest, form.after_value, _pattern(value) if types == ["string"] else ANY)
            yield f"{own}: {literal(form.before_key + name + form.after_key)} {rest}"


def _texts(schema: Mapping[str, Any]) -> list[str]:
    """What a value is written as, where that is one of a few; none: anything."""
    values = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else []
    return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]


def _pattern(schema: Mapping[str, Any]) -> str:
    """What a text must be, as a regex in Lark. A `format` alone is no limit."""
    if pattern := schema.get("pattern"):
        begins, inner, ends = _anchors(pattern)
        return regex_to_lark(f"{'' if begins else ANY}({inner}){'' if ends else ANY}", "d")
    low, high = schema.get("minLength", 0), schema.get("maxLength", "")
    return f"[^<]{{{low},{high}}}" if low or high != "" else ANY  # without the beginning of what ends it


def _anchors(pattern: str) -> tuple[bool, str, bool]:
    """Whether it is bound to the text's beginning, the pattern without the anchors, and whether to the end."""
    begins = pattern.startswith("^")
    inner = pattern[begins:]
    backslashes = len(inner) - 1 - len(inner[:-1].rstrip("\\")) if inner.endswith("$") else 1
    ends = inner.endswith("$") and backslashes % 2 == 0
    return begins, inner[: len(inner) - ends], ends
