"""What the commands have in common: the checks, a start with progress, and signals that end them cleanly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from local import preflight
from local.settings import TritonSettings
from local.triton import LocalTriton, TritonError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def read_settings() -> TritonSettings:
    try:
        return TritonSettings.from_environment(os.environ)
    except ValueError as error:
        err.print(str(error), markup=False)
        raise typer.Exit(2) from error


def require_preflight(settings: TritonSettings) -> None:
    """Ends the command with every problem of this machine, if there are any."""
    problems = preflight.before_start(settings.host, settings.ports, os.environ)
    for problem in problems:
        err.print(str(problem), markup=False)
    if problems:
        raise typer.Exit(1)


@contextmanager
def started(settings: TritonSettings) -> Iterator[LocalTriton]:
    """A ready server; stopped at the end of the block. Ends the command when it does not start."""
    server = LocalTriton(settings)
    _start_with_progress(server)
    try:
        yield server
    finally:
        with out.status("Stopping ..."):
            server.stop()


def end_on_signals() -> None:
    """SIGTERM ends like Ctrl-C; SIGINT does so too where a shell's `&` has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _start_with_progress(server: LocalTriton) -> None:
    began = time.monotonic()
    out.print(f"Starting tritonserver with {server.settings.model_name} ...", markup=False)
    with out.status("") as status:
        server.on_progress = lambda stage: status.update(f"{time.monotonic() - began:4.1f} s  {stage}")
        try:
            server.start()
        except TritonError as error:
            err.print(str(error), markup=False)
            raise typer.Exit(1) from error
    out.print(f"Ready after {time.monotonic() - began:.1f} s.")
