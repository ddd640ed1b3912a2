"""The flags, once for all commands: a command takes them as one typed object."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from triton_chat.channel import DEFAULT_URL
from triton_chat.cli import sampling
from triton_chat.types import CallOptions, SamplingParams, Timeouts

_PANEL = "Request"

Flags = TypeVar("Flags", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Connection:
    """Which server, and how to print what it says."""

    url: str
    as_json: bool


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Everything a request takes apart from its text."""

    connection: Connection
    model: str
    priority: int | None
    timeout: float | None
    idle_timeout: float | None
    stats: bool
    sampling: SamplingParams

    def call(self) -> CallOptions:
        """Keyword arguments for the client."""
        return CallOptions(
            model=self.model,
            priority=self.priority,
            timeout=self.timeout,
            idle_timeout=self.idle_timeout,
            sampling=self.sampling,
        )


Url = Annotated[
    str,
    typer.Option(
        envvar="TRITON_CHAT_URL", metavar="HOST:PORT", help="Triton's gRPC address; grpcs://HOST:PORT for TLS."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def _option(text: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=_PANEL, **limits)


def _named(parameters: list[inspect.Parameter]) -> Callable[[Flags], Flags]:
    """Says which keyword arguments the `**` of a function are."""

    def decorate(flags: Flags) -> Flags:
        own = inspect.signature(flags, eval_str=True).parameters.values()
        named = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        flags.__signature__ = inspect.Signature([*named, *parameters])  # type: ignore[attr-defined]
        return flags

    return decorate


def connection_flags(url: Url = DEFAULT_URL, as_json: Json = False) -> Connection:
    """Flags of every command."""
    return Connection(url, as_json)


@_named(sampling.flags())
def request_flags(
    url: Url = DEFAULT_URL,
    as_json: Json = False,
    model: Annotated[str, _option("Name of the model.")] = "chat",
    priority: Annotated[int | None, _option("1 is the highest.", min=1)] = None,
    timeout: Annotated[float | None, _option("Seconds for the whole answer.", min=0.001)] = None,
    idle_timeout: Annotated[float, _option("Seconds between two tokens.", min=0.001)] = Timeouts().idle,
    stats: Annotated[bool, _option("Tokens, speed and time to first token, on stderr.", "--stats")] = False,
    **sampled: Any,
) -> RequestOptions:
    """Flags of every command that makes a request."""
    connection = Connection(url, as_json)
    return RequestOptions(connection, model, priority, timeout, idle_timeout, stats, sampling.read(sampled))


def takes(flags: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of `flags`, whose result it gets as its first argument."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = inspect.signature(flags, eval_str=True).parameters
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(flags(**{name: given.pop(name) for name in shared}), **given)

        parameters = [*own, *shared.values()]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__
        return run

    return decorate
