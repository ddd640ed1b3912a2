"""Tools and what the chat template is given, as flags."""

from __future__ import annotations

import json

from triton_chat.cli.files import read_json
from triton_chat.cli.terminal import printable
from triton_chat.errors import InvalidRequestError
from triton_chat.types import Tool, ToolChoice, function_of

_CHOICES = ("none", "auto", "required")
_PYTHON = {"True": "true", "False": "false", "None": "null"}
"""What Python writes, to what JSON does: as a text, each of them would be true for a chat template."""


def tools_of(file: str | None) -> list[Tool] | None:
    """The tools in a file; what each may be, the server decides. Raises InvalidRequestError."""
    if file is None:
        return None
    tools = read_json("--tools", file)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequestError(
            f'--tools: {file} must be a JSON list of tools such as {{"type": "function", "function": {{"name": ...}}}}'
        )
    return tools


def choice_of(text: str | None) -> ToolChoice | None:
    """As the API has it; what is none of its words is the name of a function."""
    return text if text is None or text in _CHOICES else {"type": "function", "function": {"name": text}}


def template_kwargs_of(entries: list[str] | None) -> dict[str, object] | None:
    """NAME=VALUE; the value is JSON where it can be read so, and text otherwise.

    Raises:
        InvalidRequestError: an entry of another form, a name that comes twice, or a value of Python and not of JSON.
    """
    found: dict[str, object] = {}
    for entry in entries or ():
        name, equals, value = entry.partition("=")
        if not (name and equals):
            raise InvalidRequestError(
                f"--template-kwarg takes NAME=VALUE, such as enable_thinking=false, not {entry!r}"
            )
        if name in found:
            raise InvalidRequestError(f"--template-kwarg gives {name} twice")
        found[name] = _value(name, value)
    return found or None


def name_of(tool: Tool) -> str:
    """Of whatever shape it is; the server judges that."""
    return str(function_of(tool).get("name", ""))


def tool_line(tool: Tool) -> str:
    """A tool for people: its name and the first line of its description."""
    first = str(function_of(tool).get("description", "")).strip().partition("\n")[0]
    return printable(f"{name_of(tool)}  {first}".strip())


def _value(name: str, text: str) -> object:
    if text in _PYTHON:
        raise InvalidRequestError(
            f"--template-kwarg: write {name}={_PYTHON[text]}, or {name}='\"{text}\"' for the text {text}"
        )
    try:
        value: object = json.loads(text)
    except RecursionError as error:
        raise InvalidRequestError(f"--template-kwarg: {name} is nested too deeply") from error
    except ValueError:
        return text
    return value
