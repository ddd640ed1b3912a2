"""`triton-chat-server fetch`: a checkpoint into a folder, before the server starts."""

from __future__ import annotations

import argparse
import logging
import os
import signal
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import NoReturn

from triton_chat_server.errors import CommandError
from triton_chat_server.fetch.files import Source
from triton_chat_server.fetch.run import fetch
from triton_chat_server.urls import is_server

log = logging.getLogger("fetch")

_DESCRIPTION = """\
Downloads the files of a checkpoint that transformers needs into a folder: safetensors weights, configuration and
tokenizer, never code; with --adapter, the two files of a LoRA adapter. An interrupted run is resumed. Sizes and
checksums are verified, and the result is recorded in .triton-chat-fetch.json in that folder: later runs then do
nothing, even if the branch or bucket has changed. Another source or revision replaces the earlier checkpoint; another
endpoint alone does not.

An S3 object uploaded in parts, without a SHA-256 of the whole object, is verified by size only; a warning is logged.
"""
_EPILOG = """\
environment:
  HF_TOKEN                                   token for a gated or private repository
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY   and the other variables that boto3 reads

examples:
  triton-chat-server fetch hub --id Qwen/Qwen2.5-0.5B-Instruct --target /models/chat
  triton-chat-server fetch hub --id deepseek-ai/deepseek-llm-7b-chat --convert --target /models/chat
  triton-chat-server fetch hub --id org/sql-lora --adapter --target /models/adapters/sql
  triton-chat-server fetch s3 --uri s3://models/qwen --endpoint http://minio:9000 --target /models/chat
"""


def main(arguments: Sequence[str]) -> int:
    """0, or 1 after a line that says why. SIGTERM ends it at once, with 143."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    for chatty in ("httpx2", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # As a container's first process it would not end without a handler.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        convert = options.kind == "hub" and options.convert
        fetch(_source(options), options.target, convert_bins=convert, verify=options.verify, adapter=options.adapter)
    except CommandError as error:
        log.error("%s", error)  # noqa: TRY400 - a sentence for the operator
        return 1
    return 0


def _source(options: argparse.Namespace) -> Source:
    """Imports only the libraries of the kind that is asked for. Raises CommandError."""
    try:
        module = import_module(f"triton_chat_server.fetch.{options.kind}")
    except ImportError as error:
        raise CommandError(
            f"fetch {options.kind} needs the module {error.name!r}: pip install 'triton-chat[server]'"
        ) from error
    source: Source
    if options.kind == "hub":
        source = module.HubSource(options.id, options.revision, options.endpoint or None)
    else:
        source = module.S3Source(options.uri, options.endpoint or None, options.region or None)
    return source


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - a signal handler's arguments
    log.info("stopped by %s; the next run resumes from here", signal.Signals(number).name)
    os._exit(128 + number)  # without waiting for the threads that download


def _endpoint(text: str) -> str:
    """It appears in the log and in the marker, so it must hold no password. Empty: the default."""
    if text and not is_server(text):
        raise argparse.ArgumentTypeError(
            "must be http://host or https://host, optionally with a port, without user or password"
        )
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-chat-server fetch",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="{hub,s3}", required=True)
    hub = kinds.add_parser("hub", help="from the hub or a mirror", allow_abbrev=False)
    hub.add_argument("--id", required=True, metavar="ORG/NAME", help="repository")
    hub.add_argument("--revision", default="main", metavar="REV", help="commit, tag or branch (main)")
    hub.add_argument("--endpoint", metavar="URL", type=_endpoint, help="address (HF_ENDPOINT, else the public hub)")
    hub.add_argument("--convert", action="store_true", help="convert weights that are published as .bin only")
    s3 = kinds.add_parser("s3", help="from S3 or an S3-compatible store", allow_abbrev=False)
    s3.add_argument("--uri", required=True, metavar="s3://BUCKET/PREFIX", help="location of the checkpoint")
    s3.add_argument("--endpoint", metavar="URL", type=_endpoint, help="address of the store (AWS)")
    s3.add_argument("--region", metavar="NAME", help="region of the bucket")
    for kind in (hub, s3):
        kind.add_argument("--target", required=True, type=Path, metavar="FOLDER", help="where to put the checkpoint")
        kind.add_argument("--adapter", action="store_true", help="it is a LoRA adapter, not a checkpoint")
        kind.add_argument("--verify", action="store_true", help="verify the checksums of files that are already there")
    return parser
