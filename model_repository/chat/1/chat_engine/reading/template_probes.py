"""What a chat template is tried with: words that no template writes, and that trimming or escaping leaves alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

SAID = {
    "system": "probe instruction 7301",
    "user": "probe question 7302",
    "assistant": "probe answer 7303",
    "developer": "probe rule 7312",
}
_TOOL_NAME, _TOOL_PURPOSE = "probe_tool_7304", "probe purpose 7305"
_KEY, _VALUE = "probe_key_7306", "probe value 7307"
_CALLED = "probe_called_7308"  # not the name of the tool, which may be in the prompt for being offered
_RESULT = "probe result 7309"

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _TOOL_NAME,
        "description": _TOOL_PURPOSE,
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "probe key"}},
            "required": [_KEY],
        },
    },
}
TOOL_WITHOUT_PURPOSE = {
    **TOOL,
    "function": {name: value for name, value in TOOL["function"].items() if name != "description"},
}
_THOUGHT = "probe thought 7310"
_QUOTED_TWICE = re.compile(rf'\\"{_KEY}')
_PRINTED = re.compile(rf"'{_KEY}': ?'")


def words() -> str:
    """Everything that is said, so that it can be told from what a template writes."""
    return json.dumps([*SAID.values(), TOOL, *_call_and_result()])


def turns_of(roles: Sequence[str]) -> list[dict[str, Any]]:
    """Each role says what a probe says."""
    return [{"role": role, "content": SAID[role]} for role in roles]


def conversations_with_calls() -> list[list[dict[str, Any]]]:
    """A tool is called and has answered, at the end of each; some templates want a system message, some want none."""
    return [[*turns_of(roles), *_call_and_result()] for roles in (("user",), ("system", "user"))]


def _call_and_result() -> list[dict[str, Any]]:
    call_id = "call_probe7311"
    call = {"id": call_id, "type": "function", "function": {"name": _CALLED, "arguments": {_KEY: _VALUE}}}
    return [
        {"role": "assistant", "content": "", "reasoning_content": _THOUGHT, "tool_calls": [call]},
        {"role": "tool", "content": _RESULT, "tool_call_id": call_id, "name": _CALLED},
    ]


def shows_tool(text: str, tool: Mapping[str, Any]) -> bool:
    """Whether one of the two is in the prompt."""
    return all(word in text for word in (tool["function"]["name"], tool["function"].get("description", "")))


def shows_call(text: str) -> bool:
    """Whether the call and what came of it are in the prompt."""
    return all(word in text for word in (_CALLED, _KEY, _VALUE, _RESULT))


def is_clean(text: str) -> bool:
    """Whether the arguments stand there as JSON, or in a form of the template's own; not quoted twice or as Python."""
    return not (_QUOTED_TWICE.search(text) or _PRINTED.search(text))
