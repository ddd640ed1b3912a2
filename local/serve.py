"""Serves in the foreground until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from local import console
from local.options import StackOptions, TritonOptions
from local.overview import overview, triton_overview
from local.service import LocalService
from local.stack import LocalStack
from local.triton import LocalTriton

POLL_S = 0.5


def run() -> None:
    with suppress(KeyboardInterrupt), console.running(stack_of) as stack:
        console.out.print(overview(stack), markup=False)
        _watch(stack.servers)
    console.out.print("Stopped.")


def run_triton(
    repository: Annotated[Path, typer.Argument(help="A model repository: a folder with a folder for each model.")],
) -> None:
    with suppress(KeyboardInterrupt), console.running(partial(triton_of, repository)) as triton:
        console.out.print(triton_overview(triton), markup=False)
        _watch(triton.servers)
    console.out.print("Stopped.")


def stack_of(environment: Mapping[str, str]) -> LocalStack:
    return LocalStack(StackOptions.from_environment(environment))


def triton_of(repository: Path, environment: Mapping[str, str]) -> LocalTriton:
    return LocalTriton(TritonOptions.from_environment(environment).with_repository(repository))


def _watch(servers: Sequence[LocalService]) -> None:
    """Ends the command when one of the servers ends."""
    while all(server.poll() is None for server in servers):
        time.sleep(POLL_S)
    for server in servers:
        if (code := server.poll()) is not None:
            console.err.print(f"{server.name} died (exit code {code}); the end of its log:", markup=False)
            console.err.print(server.log_tail(), markup=False)
    raise typer.Exit(1)
