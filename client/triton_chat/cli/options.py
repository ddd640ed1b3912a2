"""The flags, once for all commands: a command takes them as one typed object."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from triton_chat.channel import DEFAULT_URL
from triton_chat.errors import InvalidRequestError
from triton_chat.types import CallOptions, SamplingParams, Timeouts

_REQUEST = "Request"
_SAMPLING = "Sampling (unset: the server's default)"


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


def _option(text: str, *names: str, panel: str = _SAMPLING, metavar: str | None = None, **limits: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, **limits)


def connection_flags(url: Url = DEFAULT_URL, as_json: Json = False) -> Connection:
    """Flags of every command."""
    return Connection(url, as_json)


def request_flags(
    url: Url = DEFAULT_URL,
    as_json: Json = False,
    model: Annotated[str, _option("Name of the model.", panel=_REQUEST)] = "chat",
    priority: Annotated[int | None, _option("1 is the highest.", panel=_REQUEST, min=1)] = None,
    timeout: Annotated[float | None, _option("Seconds for the whole answer.", panel=_REQUEST, min=0.001)] = None,
    idle_timeout: Annotated[float, _option("Seconds between two tokens.", panel=_REQUEST, min=0.001)] = Timeouts().idle,
    stats: Annotated[
        bool, _option("Tokens, speed and time to first token, on stderr.", "--stats", panel=_REQUEST)
    ] = False,
    max_tokens: Annotated[int | None, _option("Longest answer, in tokens.")] = None,
    min_tokens: Annotated[int | None, _option("Shortest answer, in tokens.")] = None,
    temperature: Annotated[float | None, _option("0 always takes the likeliest token.")] = None,
    top_p: Annotated[float | None, _option("Sample from the likeliest tokens of this total probability.")] = None,
    top_k: Annotated[int | None, _option("Sample from the K likeliest tokens.")] = None,
    min_p: Annotated[float | None, _option("Drop tokens less likely than this part of the likeliest.")] = None,
    presence_penalty: Annotated[float | None, _option("Against tokens that have occurred.")] = None,
    frequency_penalty: Annotated[float | None, _option("Against tokens, by how often they occurred.")] = None,
    repetition_penalty: Annotated[float | None, _option("Above 1: against tokens of prompt and answer.")] = None,
    logit_bias: Annotated[
        list[str] | None, _option("Favour or avoid a token id; repeatable.", metavar="ID=VALUE")
    ] = None,
    stop: Annotated[list[str] | None, _option("End the answer before this text; repeatable.")] = None,
    stop_token_id: Annotated[list[int] | None, _option("End the answer at this token id; repeatable.")] = None,
    ignore_eos: Annotated[bool, _option("Go on past the model's end token.", "--ignore-eos")] = False,
    seed: Annotated[int | None, _option("The same seed gives the same answer.")] = None,
    logprobs: Annotated[int | None, _option("Log probabilities, with N alternatives per token.", metavar="N")] = None,
    prompt_logprobs: Annotated[int | None, _option("The same for the tokens of the prompt.", metavar="N")] = None,
) -> RequestOptions:
    """Flags of every command that makes a request."""
    sampling = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        logit_bias=_biases(logit_bias or []) or None,
        stop=tuple(stop) if stop else None,
        stop_token_ids=tuple(stop_token_id) if stop_token_id else None,
        ignore_eos=ignore_eos or None,
        seed=seed,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )
    return RequestOptions(Connection(url, as_json), model, priority, timeout, idle_timeout, stats, sampling)


def _biases(given: list[str]) -> dict[int, float]:
    biases = {}
    for entry in given:
        token, _, value = entry.partition("=")
        try:
            biases[int(token)] = float(value)
        except ValueError:
            raise InvalidRequestError(f"--logit-bias takes ID=VALUE, such as 42=-100, not {entry!r}") from None
    return biases


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
