"""Checks of what comes from outside. Each raises an InvalidArgumentError that names the field and the value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from chat_engine.errors import InvalidArgumentError, field_name

Shape = TypeVar("Shape", bound=BaseModel)

_WORDS = {
    "Input should be": "must be",
    "String should": "must",
    "a valid tuple": "a valid list",
    "Extra inputs are not permitted": "unknown field",
}
_SHOWN = 80
_UNFIT = re.compile("[\0\ud800-\udfff]")  # what `check_text` refuses
_DEEPEST = 100  # of nesting: what goes through all of a value calls itself for each level, and Python allows 1000 calls


def decode(name: str, raw: bytes) -> str:
    """UTF-8 to text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"not valid UTF-8 at byte {error.start} ({error.reason})", field=name) from error


def read_json(name: str, text: str) -> Any:
    """JSON to Python; NaN and infinity become floats, which the checks behind refuse by their place."""
    try:
        return json.loads(text, parse_constant=float)
    except RecursionError as error:
        raise InvalidArgumentError("nested too deeply", field=name) from error
    except ValueError as error:
        raise InvalidArgumentError(f"not JSON: {error}", field=name) from error


def check_text(name: str, text: str) -> None:
    """No NUL, and nothing that UTF-8 cannot carry."""
    if "\0" in text:
        raise InvalidArgumentError(
            f"holds a NUL character at position {text.index(chr(0))}, which is not allowed", field=name
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"holds half a surrogate pair at position {error.start}", field=name) from error


def check_json(value: object, *place: str | int) -> None:
    """Of everything in a JSON value: texts and names as `check_text` has it, numbers that JSON has, no deep nesting."""
    rest: list[tuple[tuple[str | int, ...], object]] = [(place, value)]
    while rest:
        place_, one = rest.pop()
        if len(place_) - len(place) > _DEEPEST:
            raise InvalidArgumentError("nested too deeply", field=field_name(*place))
        if isinstance(one, str):
            if _UNFIT.search(one):
                check_text(field_name(*place_), one)
        elif isinstance(one, float) and not math.isfinite(one):
            raise InvalidArgumentError(f"must be a finite number (got {one})", field=field_name(*place_))
        elif isinstance(one, list):
            rest += [((*place_, index), entry) for index, entry in enumerate(one)]
        elif isinstance(one, dict):
            for name in filter(_UNFIT.search, one):
                check_text(field_name(*place_, show_name(name)), name)
            rest += [((*place_, show_name(name)), entry) for name, entry in one.items()]


def check_flag(name: str, value: object) -> bool | None:
    """True, false, or None for not given."""
    if value is None or isinstance(value, bool):
        return value
    raise InvalidArgumentError(f"must be true or false (got {show(value)})", field=name)


def check_token_id(name: str, token_id: int, vocab_size: int) -> None:
    """0 to `vocab_size` - 1."""
    if not 0 <= token_id < vocab_size:
        raise InvalidArgumentError(
            f"token id {show(token_id)} is not in the vocabulary; allowed are 0 to {vocab_size - 1}", field=name
        )


def at_most(name: str, value: int, limit: int, unit: str = "") -> None:
    """No more than `limit`."""
    if value > limit:
        raise InvalidArgumentError(
            f"{show(value)} {unit}".rstrip() + f" given; at most {limit} are allowed", field=name
        )


def unknown(name: str, value: object, allowed: Iterable[str]) -> InvalidArgumentError:
    """The error for a parameter that nobody knows."""
    return InvalidArgumentError(
        f"unknown parameter (value {show(value)}); allowed are {', '.join(allowed)}", field=show_name(name)
    )


def validated(shape: type[Shape], given: object, *place: str | int) -> Shape:
    """Raises InvalidArgumentError for the first mistake."""
    try:
        return shape.model_validate(given)
    except ValidationError as error:
        raise explained(error, *place, *error.errors()[0]["loc"]) from error


def explained(error: ValidationError, *place: str | int) -> InvalidArgumentError:
    """The first mistake, with its value and what is allowed, at its place in the request."""
    first = error.errors()[0]
    parts = (part if isinstance(part, int) else show_name(part) for part in place)
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "an object", first["msg"])
    for pydantic, ours in _WORDS.items():
        message = message.replace(pydantic, ours)
    return InvalidArgumentError(f"{message} (got {show(first['input'])})", field=field_name(*parts))


def show_name(text: str) -> str:
    """A name the caller chose, fit to be shown: it may be long, or hold what no text on the wire can."""
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return text if text.isprintable() else repr(text)[1:-1]


def show(value: object) -> str:
    """A value the caller chose, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
