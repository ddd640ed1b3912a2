"""`triton-chat-server join`: this machine computes for the vLLM of a server on another one."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from triton_chat_server.errors import CommandError
from triton_chat_server.models import chat_model_names
from triton_chat_server.serve.command import DEFAULT_REPOSITORY, REPOSITORY_VARIABLE

log = logging.getLogger("join")

LEADER_VARIABLE = "LWS_LEADER_ADDRESS"
RANK_VARIABLE = "LWS_WORKER_INDEX"
_PROGRAM = "chat_engine.vllm.nodes"
_DESCRIPTION = """\
Runs vLLM's workers for a model that is too large for one machine. The server (`triton-chat-server serve`) runs on the
first machine, this command on each of the others, with the same engine settings and checkpoint: `"engine": "vllm"`,
and in the block `vllm` the number of machines, `nnodes`, with sizes that multiply to all of their GPUs.

It waits for the leader, ends with exit code 1 when the leader or a worker has ended, so that a restart policy can start
all of them anew, and on SIGTERM stays until the leader has ended, since answers may still run.
"""
_EPILOG = f"""\
environment:
  TRITON_CHAT_ENGINE_CONFIG  engine settings: a file, or a folder with a <model name>.json
  {REPOSITORY_VARIABLE}     same as --repository
  {LEADER_VARIABLE}, {RANK_VARIABLE}
                             same as --leader and --rank; a LeaderWorkerSet of Kubernetes sets them

example:
  triton-chat-server join --leader gpu-1.example.com --rank 1
"""


def main(arguments: Sequence[str]) -> int:
    """Becomes the program that does it, and so returns only where that cannot be: 1, after a line that says why."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    options = _parser().parse_args(arguments)
    try:
        command, environment = worker_command(options, os.environ)
        os.execve(command[0], command, environment)  # noqa: S606 - signals are for that program
    except CommandError as error:
        log.error("%s", error)  # noqa: TRY400 - a sentence for the operator
    return 1


def worker_command(options: argparse.Namespace, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of the workers' program. Raises CommandError."""
    code = Path(options.repository or environment.get(REPOSITORY_VARIABLE) or DEFAULT_REPOSITORY) / "chat" / "1"
    if not (code / "chat_engine").is_dir():
        raise CommandError(
            f"the model repository of triton-chat is not there; set it with --repository or {REPOSITORY_VARIABLE}"
        )
    # The one that Triton's Python backend takes.
    python = shutil.which("python3", path=environment.get("PATH", os.defpath))
    if python is None:
        raise CommandError("python3 is not on PATH")
    path = os.pathsep.join(filter(None, (str(code), environment.get("PYTHONPATH"))))
    command = [python, "-m", _PROGRAM, _model(environment), _leader(options, environment), _rank(options, environment)]
    return command, {**environment, "PYTHONPATH": path}


def _model(environment: Mapping[str, str]) -> str:
    names = chat_model_names(environment)
    if len(names) != 1:
        raise CommandError(
            f"there are settings of {len(names)} chat models, {', '.join(names)}: several machines serve one model"
        )
    return names[0]


def _leader(options: argparse.Namespace, environment: Mapping[str, str]) -> str:
    leader: str = options.leader or environment.get(LEADER_VARIABLE, "")
    if not leader:
        raise CommandError(f"the leader is missing: set it with --leader or {LEADER_VARIABLE}")
    return leader


def _rank(options: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """1 or more; the program knows how many there are."""
    rank: str = options.rank or environment.get(RANK_VARIABLE, "")
    if not rank.isdecimal() or int(rank) < 1:
        raise CommandError(
            f"the rank must be a whole number from 1 on (got {rank!r}): set it with --rank or {RANK_VARIABLE}; "
            "the leader has 0"
        )
    return rank


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-chat-server join",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--leader", metavar="ADDRESS", help=f"machine of the server ({LEADER_VARIABLE})")
    parser.add_argument("--rank", metavar="N", help=f"number of this machine, 1 or more ({RANK_VARIABLE})")
    parser.add_argument("--repository", metavar="FOLDER", help=f"triton-chat's model repository ({DEFAULT_REPOSITORY})")
    return parser
