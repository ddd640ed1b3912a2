"""The flags, once for all commands: a command takes them as one typed object."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar, get_args

import typer

from triton_chat.channel import DEFAULT_URL
from triton_chat.cli import sampling, tooling
from triton_chat.cli.structure import structured
from triton_chat.types import CallOptions, ChatOptions, SamplingParams, Timeouts

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
    chat: ChatOptions = field(default_factory=ChatOptions)
    """What is about the messages; empty for a raw prompt."""
    reasoning: bool = True
    """Whether it is shown."""
    adapter: str | None = None

    def call(self) -> CallOptions:
        """Keyword arguments for the client."""
        options = CallOptions(
            model=self.model,
            adapter=self.adapter,
            priority=self.priority,
            timeout=self.timeout,
            idle_timeout=self.idle_timeout,
            sampling=self.sampling,
        )
        options.update(self.chat)  # type: ignore[typeddict-item]  # CallOptions has all that ChatOptions has
        return options


Url = Annotated[
    str,
    typer.Option(
        envvar="TRITON_CHAT_URL", metavar="HOST:PORT", help="Triton's gRPC address; grpcs://HOST:PORT for TLS."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, **more)


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
    adapter: Annotated[str | None, _option("A LoRA adapter of the model; `models` lists them.", metavar="NAME")] = None,
    priority: Annotated[int | None, _option("1 is the highest.", min=1)] = None,
    timeout: Annotated[float | None, _option("Seconds for the whole answer.", min=0.001)] = None,
    idle_timeout: Annotated[float, _option("Seconds between two tokens.", min=0.001)] = Timeouts().idle,
    stats: Annotated[bool, _option("Tokens, speed and time to first token, on stderr.", "--stats")] = False,
    json_schema: Annotated[
        str | None, _option("JSON that follows the JSON schema in this file.", metavar="FILE")
    ] = None,
    regex: Annotated[
        str | None, _option("Text that this regular expression matches as a whole.", metavar="REGEX")
    ] = None,
    choice: Annotated[list[str] | None, _option("One of these texts; repeatable.", metavar="TEXT")] = None,
    grammar: Annotated[str | None, _option("Text that follows the Lark grammar in this file.", metavar="FILE")] = None,
    **sampled: Any,
) -> RequestOptions:
    """Flags of every command that makes a request."""
    connection = Connection(url, as_json)
    params = structured(sampling.read(sampled), json_schema, regex, choice, grammar)
    return RequestOptions(connection, model, priority, timeout, idle_timeout, stats, params, adapter=adapter)


@_named(list(inspect.signature(request_flags).parameters.values()))
def chat_flags(
    tools: Annotated[
        str | None, _option("Tools the model may call: OpenAI's JSON list, in a file.", metavar="FILE")
    ] = None,
    tool_choice: Annotated[
        str | None,
        _option("none, auto, required, or the name of the tool to call.", metavar="CHOICE"),
    ] = None,
    parallel_tool_calls: Annotated[
        bool | None,
        _option(
            "Several calls in one answer, or one at most.",
            "--parallel-tool-calls/--no-parallel-tool-calls",
        ),
    ] = None,
    template_kwarg: Annotated[
        list[str] | None,
        _option("For the chat template, such as enable_thinking=false; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    reasoning: Annotated[
        bool, _option("Show what the model thinks first, on stderr.", "--reasoning/--no-reasoning")
    ] = True,
    **request: Any,
) -> RequestOptions:
    """Flags of every command that sends messages."""
    given: dict[str, Any] = {
        "tools": tooling.tools_of(tools),
        "tool_choice": tooling.choice_of(tool_choice),
        "parallel_tool_calls": parallel_tool_calls,
        "chat_template_kwargs": tooling.template_kwargs_of(template_kwarg),
    }
    chat = ChatOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
    return replace(request_flags(**request), chat=chat, reasoning=reasoning)


def takes(
    flags: Callable[..., Any], *, refused: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of `flags`, whose result it gets as its first argument.

    Args:
        refused: those that the command refuses with a reason of its own; `--help` does not list them.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = inspect.signature(flags, eval_str=True).parameters
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(flags(**{name: given.pop(name) for name in shared}), **given)

        parameters = [*own, *(_hidden(one) if one.name in refused else one for one in shared.values())]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__
        return run

    return decorate


def _hidden(parameter: inspect.Parameter) -> inspect.Parameter:
    kind, option = get_args(parameter.annotation)
    option = copy.copy(option)
    option.hidden = True
    return parameter.replace(annotation=Annotated[kind, option])
