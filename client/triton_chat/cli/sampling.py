"""The sampling parameters as flags, made from `SamplingParams`: a new field there is a new flag here."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

from triton_chat.errors import InvalidRequestError
from triton_chat.types import HELP, METAVAR, LogitBias, SamplingParams, Stop, StructuredOutputs, TokenIds


def _as_given(value: Any) -> Any:
    return value


def _listed(values: list[Any] | None) -> tuple[Any, ...] | None:
    return tuple(values) if values else None


def _biases(entries: list[str] | None) -> dict[int, float] | None:
    biases = {}
    for entry in entries or ():
        token, _, value = entry.partition("=")
        try:
            biases[int(token)] = float(value)
        except ValueError:
            raise InvalidRequestError(f"--logit-bias takes ID=VALUE, such as 42=-100, not {entry!r}") from None
    return biases or None


def _structured(text: str | None) -> StructuredOutputs | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"--structured-outputs takes JSON: {error}") from None
    except (ValueError, RecursionError):
        raise InvalidRequestError(
            "--structured-outputs is nested too deeply, or has a number of too many digits"
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"--structured-outputs takes a JSON object, not {text!r}")
    return value


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a command line gives a value of some type: as what typer reads, and what is made of that."""

    read_as: Any
    value_of: Callable[[Any], Any] = _as_given
    repeats: bool = False


_KINDS: dict[object, _Kind] = {
    int | None: _Kind(int | None),
    float | None: _Kind(float | None),
    bool | None: _Kind(bool | None),
    Stop | None: _Kind(list[str] | None, _listed, repeats=True),
    TokenIds | None: _Kind(list[int] | None, _listed, repeats=True),
    LogitBias | None: _Kind(list[str] | None, _biases, repeats=True),
    StructuredOutputs | None: _Kind(str | None, _structured),
}
"""By the types in `SamplingParams`."""


def flags() -> list[inspect.Parameter]:
    """The flags as parameters of a function, as typer reads them."""
    kinds = _kinds()
    return [_flag(field.name, kinds[field.name], field.metadata) for field in fields(SamplingParams)]


def read(given: Mapping[str, Any]) -> SamplingParams:
    """The values of `flags()`, by name.

    Raises:
        InvalidRequestError: a value that is none of its kind.
    """
    return SamplingParams(**{name: kind.value_of(given[name]) for name, kind in _kinds().items()})


def _kinds() -> dict[str, _Kind]:
    types = get_type_hints(SamplingParams)
    return {field.name: _KINDS[types[field.name]] for field in fields(SamplingParams)}


def _flag(name: str, kind: _Kind, described: Mapping[str, Any]) -> inspect.Parameter:
    text = f"{described[HELP].removesuffix('.')}; repeatable." if kind.repeats else described[HELP]
    option = typer.Option(*_spelled(name, kind), help=text, metavar=described[METAVAR])
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind.read_as, option]
    )


def _spelled(name: str, kind: _Kind) -> list[str]:
    """A flag that gives one of many ids says so: `--stop-token-id`."""
    flag = name.replace("_", "-")
    if kind.read_as == bool | None:
        return [f"--{flag}/--no-{flag}"]
    return [f"--{flag.removesuffix('s')}" if flag.endswith("-ids") else f"--{flag}"]
