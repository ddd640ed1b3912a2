"""Serves in the foreground until Ctrl-C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from local import console
from local.options import StackOptions, TritonOptions
from local.overview import overview, triton_overview
from local.restarts import CrashLoopError, keep_running
from local.service import LocalService
from local.stack import LocalStack
from local.triton import LocalTriton


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
    """Ends the command when one of the servers fails again and again."""
    try:
        keep_running(servers, lambda line: console.err.print(line, markup=False), console.ENDING)
    except CrashLoopError as error:
        console.err.print(str(error), markup=False)
        raise typer.Exit(1) from error
