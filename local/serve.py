"""Serves in the foreground until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import typer

from local import console
from local.options import StackOptions
from local.overview import overview
from local.service import LocalService
from local.stack import LocalStack

POLL_S = 0.5


def run() -> None:
    with suppress(KeyboardInterrupt), console.running(stack_of) as stack:
        console.out.print(overview(stack), markup=False)
        _watch(stack.servers)
    console.out.print("Stopped.")


def stack_of(environment: Mapping[str, str]) -> LocalStack:
    return LocalStack(StackOptions.from_environment(environment))


def _watch(servers: Sequence[LocalService]) -> None:
    """Ends the command when one of the servers ends."""
    while all(server.poll() is None for server in servers):
        time.sleep(POLL_S)
    for server in servers:
        if (code := server.poll()) is not None:
            console.err.print(f"{server.name} died (exit code {code}); the end of its log:", markup=False)
            console.err.print(server.log_tail(), markup=False)
    raise typer.Exit(1)
