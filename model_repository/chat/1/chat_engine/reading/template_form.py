"""How a chat template wants the turns of a conversation. OpenAI's messages have more shapes than any template takes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Turn = Mapping[str, Any]
"""As in OpenAI's messages, but: `content` is a string, arguments of calls are objects.

A call may have the arguments as the caller wrote them, under `arguments_text`.
"""
Silence = Literal["empty", "null", "missing"]

_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


@dataclass(frozen=True)
class Form:
    """What turns are made into for a template.

    Attributes:
        parts: roles whose content is a list of parts, `[{"type": "text", "text": ...}]`, instead of a string.
        silence: the content of an assistant that says nothing and calls tools.
        arguments_as_text: arguments of calls are JSON text, instead of an object.
        short_ids: ids of calls are 9 letters and digits, as Mistral's templates demand.
        developer: it knows this role; for others it is `system`.
        described: every tool has a description, if an empty one.
        also_reasoning: a further name under which it looks for an assistant's reasoning.
    """

    parts: frozenset[str] = frozenset()
    silence: Silence = "empty"
    arguments_as_text: bool = False
    short_ids: bool = False
    developer: bool = False
    described: bool = False
    also_reasoning: str | None = None

    def turns(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """Turns for the template; the given ones stay as they are."""
        return [self._turn(turn) for turn in turns]

    def tools(self, tools: Sequence[Turn]) -> list[dict[str, Any]]:
        """Tools for the template."""
        described = {"description": ""} if self.described else {}
        return [{**tool, "function": {**described, **tool["function"]}} for tool in tools]

    def role(self, role: str) -> str:
        """What the template calls it."""
        return "system" if role == "developer" and not self.developer else role

    def _turn(self, given: Turn) -> dict[str, Any]:
        turn = dict(given)
        turn["role"] = self.role(turn["role"])
        if calls := turn.get("tool_calls"):
            turn["tool_calls"] = [self._call(call) for call in calls]
        if "tool_call_id" in turn:
            turn["tool_call_id"] = self._id(turn["tool_call_id"])
        if self.also_reasoning and "reasoning_content" in turn:
            turn[self.also_reasoning] = turn["reasoning_content"]
        if calls and not turn["content"] and self.silence != "empty":
            return _without_content(turn, self.silence)
        if turn["role"] in self.parts:
            turn["content"] = [{"type": "text", "text": turn["content"]}]
        return turn

    def _call(self, call: Turn) -> dict[str, Any]:
        function = dict(call["function"])
        text = function.pop("arguments_text", None)
        if self.arguments_as_text:
            function["arguments"] = text or json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "id": self._id(call["id"]), "function": function}

    def _id(self, call_id: str) -> str:
        if not self.short_ids or _SHORT_ID.fullmatch(call_id):
            return call_id
        return hashlib.blake2b(call_id.encode(), digest_size=8).hexdigest()[:9]


def _without_content(turn: dict[str, Any], silence: Silence) -> dict[str, Any]:
    if silence == "null":
        return {**turn, "content": None}
    return {name: value for name, value in turn.items() if name != "content"}
