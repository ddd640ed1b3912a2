"""A model for callers who do not care what it says: it calls what it may, and follows a schema."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from triton_chat.types import Call, ChatEvent, ToolCallDelta

ANSWER = "It is 12 °C in Köln 🌧."
THOUGHT = "Let me see."


async def obliging(call: Call) -> AsyncIterator[ChatEvent]:
    """The script: think, then call the first tool there is unless its result is there already, else answer."""
    request = call.request
    yield ChatEvent("", num_input_tokens=9, num_output_tokens=1, reasoning=THOUGHT, num_reasoning_tokens=1)
    if (tool := _wanted(call)) is not None:
        arguments = json.dumps(example(tool.get("parameters") or {"type": "object"}), ensure_ascii=False)
        for event in _called(str(tool["name"]), arguments, "stop" if _is_named(call) else "tool_calls"):
            yield event
        return
    outputs = request.sampling.structured_outputs
    text = ANSWER if outputs is None else json.dumps(example(outputs["json"]), ensure_ascii=False)
    middle = len(text) // 2
    yield ChatEvent(text[:middle], "", 9, 2, num_reasoning_tokens=1)
    yield ChatEvent(text[middle:], "stop", 9, 3, num_reasoning_tokens=1)


def example(schema: Any, root: Mapping[str, Any] | None = None) -> Any:
    """A value that follows a JSON schema of the kind that programs make of their types."""
    if schema is True or not schema:
        return {}
    root = root or schema
    if "$ref" in schema:
        return example(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return example(schema[name][0], root)
    if "const" in schema:
        return schema["const"]
    for name in ("examples", "enum"):
        if name in schema:
            return schema[name][0]
    match schema.get("type", "object"):
        case "object":
            return {name: example(part, root) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [example(schema.get("items", {"type": "string"}), root)]
        case kind:
            return {"string": "Köln", "integer": 12, "number": 1.5, "boolean": True, "null": None}[kind]


def _wanted(call: Call) -> dict[str, Any] | None:
    """The function to call, if one is."""
    request = call.request
    tools: list[Any] = [tool["function"] for tool in request.tools or ()]
    assert request.messages
    last = request.messages[-1]
    has_result = not isinstance(last, str) and last["role"] == "tool"
    if not tools or request.tool_choice == "none" or (has_result and request.tool_choice in (None, "auto")):
        return None
    if isinstance(request.tool_choice, Mapping):
        named: Any = request.tool_choice["function"]
        return next(tool for tool in tools if tool["name"] == named["name"])
    return tools[0]


def _is_named(call: Call) -> bool:
    return isinstance(call.request.tool_choice, Mapping)


def _called(name: str, arguments: str, finish_reason: str) -> list[ChatEvent]:
    middle = len(arguments) // 2
    deltas = [
        ToolCallDelta(0, "call_1", name),
        ToolCallDelta(0, arguments=arguments[:middle]),
        ToolCallDelta(0, arguments=arguments[middle:]),
    ]
    events = [
        ChatEvent("", "", 9, count, tool_calls=(delta,), num_reasoning_tokens=1)
        for count, delta in enumerate(deltas, start=2)
    ]
    return [*events, ChatEvent("", finish_reason, 9, 5, num_reasoning_tokens=1)]
