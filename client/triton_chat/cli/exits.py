"""What the process ends with, and how a failure is told to the person who typed the command."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from triton_chat.cli import terminal
from triton_chat.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    ServerUnavailableError,
    StreamTimeoutError,
    TritonChatError,
)

INTERRUPTED = 130
_CODES: tuple[tuple[type[TritonChatError], int], ...] = (
    (InvalidRequestError, 2),
    (ModelNotFoundError, 2),
    (ServerUnavailableError, 3),
    (OverloadedError, 4),
    (StreamTimeoutError, 124),
    (TritonChatError, 1),
)
_HINTS: dict[type[TritonChatError], str] = {
    ModelNotFoundError: "`triton-chat models` lists what the server has",
    OverloadedError: "the server is busy: try again in a moment, or look at `triton-chat status`",
    StreamTimeoutError: "--timeout and --idle-timeout set the limits; `triton-chat status` shows the queue",
}


def code_of(error: TritonChatError) -> int:
    """The exit code for an error."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def report(error: TritonChatError) -> None:
    """Say what went wrong, on standard error."""
    say(f"error: {error}")
    if type(error) in _HINTS:
        say(f"hint: {_HINTS[type(error)]}")


def say(text: str) -> None:
    """A diagnostic line; standard output is for answers alone."""
    terminal.write_error(f"{text}\n")


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the errors of a command into a message and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
            sys.stdout.flush()
        except TritonChatError as error:
            report(error)
            raise typer.Exit(code_of(error)) from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _silence_stdout()
            raise typer.Exit(0) from None

    return run


@contextmanager
def remembered_interrupt() -> Iterator[Callable[[], None]]:
    """For loops: gives what raises KeyboardInterrupt if Ctrl-C has come.

    Python drops the exception of a signal that arrives inside a finalizer, of which a gRPC channel has several.
    """
    came = False
    before = signal.getsignal(signal.SIGINT)

    def note(*_: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _silence_stdout() -> None:
    """Whoever read our output is gone; without this the interpreter complains when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
