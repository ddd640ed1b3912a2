"""The command `triton-chat-server`, also `python -m triton_chat_server`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

_COMMANDS = {
    "serve": "run tritonserver with the chat models, on GPU or CPU",
    "join": "compute for the server on another machine: a model over several machines, with vLLM",
    "fetch": "download a checkpoint into a folder: resumable, verified, pinned",
    "probe": "check whether the server is live or ready; the exit code tells the result",
}
_EPILOG = """\
examples:
  triton-chat-server serve --device cpu --log-verbose=1
  triton-chat-server fetch hub --id Qwen/Qwen2.5-0.5B-Instruct --target /models/chat
  triton-chat-server probe live
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with the code of the command, with 2 for a wrong command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] not in _COMMANDS:
        _parser().parse_args(arguments or ["--help"])
        return
    command = import_module(f"triton_chat_server.{arguments[0]}.command")
    sys.exit(command.main(arguments[1:]))


def _parser() -> argparse.ArgumentParser:
    """Only for help and mistakes: each subcommand has a parser of its own, which the others need not import."""
    parser = argparse.ArgumentParser(
        prog="triton-chat-server",
        description="Serves chat models with tritonserver. `COMMAND --help` describes a command.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"triton-chat-server {_version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in _COMMANDS.items():
        subparsers.add_parser(name, help=text)
    return parser


def _version() -> str:
    metadata = import_module("importlib.metadata")
    try:
        return str(metadata.version("triton-chat"))
    except metadata.PackageNotFoundError:
        return "0+unknown"


if __name__ == "__main__":
    main()
