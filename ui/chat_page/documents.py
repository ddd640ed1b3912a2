"""JSON that the reader types, and JSON that a model writes."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NoReturn

from chat_page.options import Document


class NotUsableError(ValueError):
    """What was typed cannot be sent; its text is a sentence for the reader."""


def tools_of(text: str) -> tuple[Document, ...]:
    """A list of tools, or a single one. Raises NotUsableError."""
    if not text.strip():
        return ()
    document = _read("Tools", text)
    tools = [document] if isinstance(document, dict) else document
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise NotUsableError("Tools must be a JSON list of objects; the example shows one.")
    return tuple(tools)


def schema_of(text: str) -> Document | None:
    """A JSON schema. Raises NotUsableError."""
    if not text.strip():
        return None
    document = _read("JSON schema", text)
    if not isinstance(document, dict):
        raise NotUsableError('JSON schema must be a JSON object, such as {"type": "object"}.')
    return document


def pretty(text: str) -> str | None:
    """A JSON object or list, indented; None for all other text, and for JSON that would not be the same indented."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        document = json.loads(text, parse_constant=_refuse)
        indented = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2)
        indented.encode()  # a browser gets UTF-8, which has no half of a surrogate pair
        return indented if _exact(indented) == _exact(text) else None
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _exact(text: str) -> Any:
    """What JSON says, with every digit, and with each of several values of one name."""
    return json.loads(text, parse_float=Decimal, object_pairs_hook=tuple)


def _read(label: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NotUsableError(f"{label} is not JSON at {where}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise NotUsableError(f"{label} is not JSON that can be sent.") from error


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
