"""What the commands have in common: the checks, a start with progress, and signals that end them cleanly."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import NoReturn, Protocol, TypeVar

import typer
from rich.console import Console
from rich.live import Live

from local import logs
from local.display import Readiness
from local.options import RUN_LOGS
from local.service import LocalService, ServerError, start_together, stop_together

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
ENDING = threading.Event()
"""Set once a signal asks for the end. The exception that it raises too is lost where it meets a destructor."""


class Runnable(Protocol):
    """One server, or several that belong together."""

    @property
    def servers(self) -> Sequence[LocalService]: ...


RunnableT = TypeVar("RunnableT", bound=Runnable)
FromEnvironment = Callable[[Mapping[str, str]], RunnableT]


@contextmanager
def running(make: FromEnvironment[RunnableT]) -> Iterator[RunnableT]:
    """What `make` returns, ready; stopped at the end of the block, which Ctrl-C and SIGTERM interrupt.

    Ends the command, saying why, where the environment, this machine or a server does not allow a start.
    """
    _interrupt_on_signals()
    runnable = checked(make)
    with logs.kept(RUN_LOGS) if _log_there(runnable.servers) else nullcontext():
        _start(runnable.servers)
        try:
            yield runnable
        finally:
            _stop(runnable.servers)


def checked(make: FromEnvironment[RunnableT]) -> RunnableT:
    """Ends the command with every problem of the environment and of this machine, if there are any."""
    try:
        runnable = make(os.environ)
    except ValueError as error:
        err.print(str(error), markup=False)
        raise typer.Exit(2) from error
    problems = [problem for server in runnable.servers for problem in server.problems()]
    for problem in problems:
        err.print(str(problem), markup=False)
    if problems:
        raise typer.Exit(1)
    return runnable


def _start(servers: Sequence[LocalService]) -> None:
    out.print(f"Starting {', '.join(server.title for server in servers)} ...", markup=False)
    readiness = Readiness(servers)
    try:
        with Live(readiness, console=out, refresh_per_second=10, transient=True):
            start_together(servers)
    except ServerError as error:
        err.print(str(error), markup=False)
        raise typer.Exit(1) from error
    out.print(readiness)


def _stop(servers: Sequence[LocalService]) -> None:
    with out.status(f"Stopping {', '.join(server.name for server in reversed(servers))} ... (Ctrl-C kills)"):
        stop_together(servers)


def _log_there(servers: Sequence[LocalService]) -> bool:
    return any(server.options.log_path.parent == RUN_LOGS for server in servers)


def _interrupt_on_signals() -> None:
    """SIGTERM ends like Ctrl-C; SIGINT does so too where a shell's `&` has it ignored."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - a signal handler's arguments
    # `make` and `timeout` send SIGTERM twice; only a second Ctrl-C asks for haste.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ENDING.set()
    raise KeyboardInterrupt
