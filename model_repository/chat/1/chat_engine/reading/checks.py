"""Checks of what comes from outside. Each raises an InvalidArgumentError that names the field and the value."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from chat_engine.errors import InvalidArgumentError

_SHOWN = 80


def decode(name: str, raw: bytes) -> str:
    """UTF-8 to text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{name}: not valid UTF-8 at byte {error.start} ({error.reason})") from error


def read_json(name: str, text: str) -> Any:
    """JSON to Python; NaN and infinity become floats, which the checks behind refuse by their place."""
    try:
        return json.loads(text, parse_constant=float)
    except RecursionError as error:
        raise InvalidArgumentError(f"{name}: nested too deeply") from error
    except ValueError as error:
        raise InvalidArgumentError(f"{name}: not JSON: {error}") from error


def check_text(name: str, text: str) -> None:
    """No NUL, and nothing that UTF-8 cannot carry."""
    if "\0" in text:
        raise InvalidArgumentError(
            f"{name}: holds a NUL character at position {text.index(chr(0))}, which is not allowed"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{name}: holds half a surrogate pair at position {error.start}") from error


def check_flag(name: str, value: object) -> bool | None:
    """True, false, or None for not given."""
    if value is None or isinstance(value, bool):
        return value
    raise InvalidArgumentError(f"{name}: must be true or false (got {show(value)})")


def check_token_id(name: str, token_id: int, vocab_size: int) -> None:
    """0 to `vocab_size` - 1."""
    if not 0 <= token_id < vocab_size:
        raise InvalidArgumentError(
            f"{name}: token id {show(token_id)} is not in the vocabulary; allowed are 0 to {vocab_size - 1}"
        )


def at_most(name: str, value: int, limit: int, unit: str = "") -> None:
    """No more than `limit`."""
    if value > limit:
        raise InvalidArgumentError(f"{name}: {show(value)} {unit}".rstrip() + f" given; at most {limit} are allowed")


def unknown(name: str, value: object, allowed: Iterable[str]) -> InvalidArgumentError:
    """The error for a parameter that nobody knows."""
    return InvalidArgumentError(
        f"{show_name(name)}: unknown parameter (value {show(value)}); allowed are {', '.join(allowed)}"
    )


def explain(error: ValidationError, prefix: str) -> str:
    """The first mistake, with its place, its value and what is allowed."""
    first = error.errors()[0]
    place = ".".join(map(show_name, [*([prefix] if prefix else []), *first["loc"]]))
    message = first["msg"].replace("Input should be", "must be")
    return f"{place}: {message} (got {show(first['input'])})"


def show_name(part: int | str) -> str:
    """A name the caller chose, fit to be shown: it may be long, or hold what no text on the wire can."""
    text = str(part)
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return text if text.isprintable() else repr(text)[1:-1]


def show(value: object) -> str:
    """A value the caller chose, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
