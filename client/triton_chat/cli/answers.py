"""`ask` and `complete`: one request, one answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import triton_chat
from triton_chat.cli import exits, terminal
from triton_chat.cli.options import Connection, RequestOptions
from triton_chat.cli.writing import AnswerWriter
from triton_chat.errors import InvalidRequestError
from triton_chat.types import CallOptions, ChatResult, Messages

if TYPE_CHECKING:
    from triton_chat.client import ChatClient


@contextmanager
def connected(connection: Connection) -> Iterator[ChatClient]:
    """A client; loading it is what takes time, so this is where it happens."""
    with triton_chat.ChatClient(connection.url) as client:
        yield client


def ask(options: RequestOptions, question: str | None, system: str | None) -> None:
    """Send question and piped text as one message of the user."""
    parts = [text for text in (question, terminal.piped_input()) if text]
    if not parts:
        raise InvalidRequestError("no question: write it as an argument, or pipe text in")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "\n\n".join(parts)})
    _answer(options, messages, options.call())


def complete(options: RequestOptions, prompt: str | None, echo: bool) -> None:
    """Send a raw prompt."""
    text = prompt or terminal.piped_input()
    if not text:
        raise InvalidRequestError("no prompt: write it as an argument, or pipe text in")
    call = options.call()
    call["prompt"] = text
    call["exclude_input_in_output"] = not echo
    _answer(options, None, call)


def _answer(options: RequestOptions, messages: Messages | None, call: CallOptions) -> None:
    with connected(options.connection) as client:
        if options.connection.as_json:
            result = client.generate(messages, **call)
            terminal.write_json({"model": options.model} | result.to_dict())
        else:
            result = _stream(client, messages, call, options.reasoning)
            for line in (*terminal.logprob_lines(result), *terminal.token_id_lines(result)):
                exits.say(line)
    if options.stats:
        exits.say(terminal.stats_line(result))


def _stream(client: ChatClient, messages: Messages | None, call: CallOptions, reasoning: bool) -> ChatResult:
    collector = triton_chat.Collector()
    with client.stream(messages, **call) as stream, AnswerWriter(reasoning=reasoning) as writer:
        for event in stream:
            collector.add(event)
            writer.write(event)
    result = collector.result()
    for wanted in result.tool_calls:
        terminal.write(f"{terminal.call_line(wanted, cut=result.finish_reason == 'length')}\n")
    return result
