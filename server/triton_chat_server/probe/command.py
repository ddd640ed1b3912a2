"""`triton-chat-server probe`: for Kubernetes' exec probes and Docker's HEALTHCHECK."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from triton_chat_server.errors import CommandError
from triton_chat_server.models import chat_model_names
from triton_chat_server.probe import checks
from triton_chat_server.serve.families import loopback
from triton_chat_server.urls import is_server

_DESCRIPTION = """\
live   tritonserver answers, each chat model sent a heartbeat within --silent-seconds, and none with running
       sequences has gone without an engine step for --stall-seconds
ready  tritonserver and each chat model report that they are ready, and each chat model sent a heartbeat within
       --silent-seconds

Exits with 0, or with 1 after printing the reason.
"""


def main(arguments: Sequence[str]) -> int:
    """0, or 1 after a line that says why."""
    options = _parser().parse_args(arguments)
    try:
        models = options.model or chat_model_names(os.environ)
        if options.what == "live":
            silent_s = options.silent_seconds or checks.SILENT_S
            checks.live(options.http, options.metrics, models, options.stall_seconds, silent_s)
        else:
            checks.ready(options.http, options.metrics, models, options.silent_seconds or checks.READY_SILENT_S)
    except (checks.UnhealthyError, CommandError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the answer of the command
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-chat-server probe",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=("live", "ready"))
    here = loopback(os.environ)
    parser.add_argument("--http", metavar="URL", type=_url, default=f"http://{here}:8000", help="(%(default)s)")
    parser.add_argument(
        "--metrics", metavar="URL", type=_url, default=f"http://{here}:8002/metrics", help="(%(default)s)"
    )
    parser.add_argument(
        "--stall-seconds", metavar="N", type=_seconds, default=checks.STALL_S, help="for `live` (%(default)g)"
    )
    parser.add_argument(
        "--silent-seconds",
        metavar="N",
        type=_seconds,
        help=f"(live: {checks.SILENT_S:g}, ready: {checks.READY_SILENT_S:g})",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        action="append",
        help="a chat model, given once or more (those of TRITON_CHAT_ENGINE_CONFIG, or `chat`)",
    )
    return parser


def _url(text: str) -> str:
    if not is_server(text, ("http",)):
        raise argparse.ArgumentTypeError(f"{text!r} is not http://host:port")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds
