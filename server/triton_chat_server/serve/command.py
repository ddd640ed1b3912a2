"""`triton-chat-server serve`: finds out what to serve, then runs tritonserver and watches over it."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from triton_chat_server.errors import CommandError
from triton_chat_server.models import chat_model_names
from triton_chat_server.serve import assembly, families, flags
from triton_chat_server.serve.gpu import gpu_visible
from triton_chat_server.supervise.supervisor import SILENT_VARIABLE, held_signals, supervise

log = logging.getLogger("serve")

REPOSITORY_VARIABLE = "TRITON_CHAT_REPOSITORY"
DEFAULT_REPOSITORY = "/opt/triton-chat/model_repository"
_BINARY = "/opt/tritonserver/bin/tritonserver"
_OPTIONAL = {
    "embeddings": "`embeddings`",
    "vllm_model": "`vllm_model`, which is `chat` for clients of Triton's vLLM backend",
}
_DESCRIPTION = f"""\
Runs tritonserver with the chat models. It passes signals on, and watches tritonserver and the process of each model:
what dies, or is stuck for 6 s, ends the server with exit code 1, so that a restart policy can start it anew.

Sets these flags for tritonserver unless you pass them yourself:

  --model-repository                      the repository, or one assembled from it
  --model-control-mode=none --disable-auto-complete-config --metrics-interval-ms=1000
  --exit-timeout-secs={flags.EXIT_TIMEOUT_S}                  longer than the engine's drain_seconds
  --model-config-name=cpu --allow-gpu-metrics=false      on the CPU
  --http-address, --grpc-address, --metrics-address      0.0.0.0, or IPv6's wildcard; see TRITON_CHAT_POD_IP
  --http-restricted-api, --grpc-restricted-protocol      close the shared memory, trace and logging APIs

Options not listed below are passed to tritonserver unchanged.
"""
_EPILOG = f"""\
environment:
  TRITON_CHAT_ENGINE_CONFIG  engine settings: a file, or a folder with a <model name>.json for each chat model
  TRITON_CHAT_MODEL          checkpoint of the model `chat`
  TRITON_CHAT_ENGINE         engine of the model `chat`: native or vllm
  TRITON_CHAT_REPOSITORY     same as --repository
  TRITON_CHAT_POD_IP         the pod's address: if it is IPv6, HTTP and metrics listen on IPv6 (tritonserver supports
                             one family at a time there) and gRPC on both; if unset, only a pod without IPv4 does so
  {SILENT_VARIABLE} how long a model's process may be silent before the server is ended (6); it reports
                             twice a second
  TRITON_CHAT_ASSEMBLY       folder in which a repository with other models than `chat` is assembled (a temporary one)

examples:
  triton-chat-server serve
  triton-chat-server serve --device cpu --no-embeddings --http-port=9000 --log-verbose=1
  TRITON_CHAT_ENGINE_CONFIG=/etc/triton-chat/engine triton-chat-server serve
"""


def main(arguments: Sequence[str]) -> int:
    """The exit code of `supervise`; 1 where tritonserver cannot be started."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    options, given = _parser().parse_known_args(arguments)
    try:
        with held_signals():
            command = server_command(options, given, os.environ)
    except CommandError as error:
        log.error("%s", error)  # noqa: TRY400 - a sentence for the operator
        return 1
    log.info("%s", " ".join(flags.shown(command)))
    return supervise(command, os.environ)


def server_command(options: argparse.Namespace, given: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """tritonserver's command line. Assembles a repository where one is needed. Raises CommandError."""
    flags.check_whole(given)
    binary = _binary(environment)
    gpu = _on_gpu(options.device, environment)
    repository = _repository(options, given, environment)
    ours = flags.server_flags(
        repository, gpu=gpu, given=given, closed=flags.closed_apis(given), address=families.wildcard(environment)
    )
    return [str(binary), *ours]


def _repository(options: argparse.Namespace, given: Sequence[str], environment: Mapping[str, str]) -> Path:
    source = Path(options.repository or environment.get(REPOSITORY_VARIABLE) or DEFAULT_REPOSITORY)
    chat_models = chat_model_names(environment)
    needed = assembly.needed(chat_models, left_out=options.left_out)
    if "model-repository" in flags.names(given):
        if needed:
            raise CommandError(
                "--model-repository serves a repository unchanged, so it cannot be combined with --no-embeddings, "
                "--no-vllm-model or chat models of other names; use --repository, from which one is assembled"
            )
        return source
    if not (source / "chat" / "config.pbtxt").is_file():
        raise CommandError(
            f"{source} is not the model repository of triton-chat; set it with --repository or {REPOSITORY_VARIABLE}"
        )
    if not needed:
        return source
    log.info("chat models: %s%s", ", ".join(chat_models), "".join(f"; no {name}" for name in options.left_out))
    return assembly.assemble(source, chat_models, left_out=options.left_out, environment=environment)


def _on_gpu(device: str, environment: Mapping[str, str]) -> bool:
    if device == "cpu":
        return False
    visible = gpu_visible(environment)
    if device == "auto":
        log.info("%s", "on the GPU" if visible else "no NVIDIA GPU is visible: on the CPU")
        return visible
    if not visible:
        log.warning("--device gpu: no NVIDIA GPU is visible")
    return True


def _binary(environment: Mapping[str, str]) -> Path:
    found = shutil.which("tritonserver", path=environment.get("PATH", os.defpath)) or _BINARY
    if not os.access(found, os.X_OK):
        raise CommandError(f"tritonserver is neither on PATH nor at {_BINARY}")
    return Path(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-chat-server serve",
        usage="%(prog)s [--device auto|gpu|cpu] [--no-embeddings] [--no-vllm-model] [--repository FOLDER] "
        "[tritonserver flags ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--device",
        choices=("auto", "gpu", "cpu"),
        default="auto",
        help="auto: the GPU if one is visible",
    )
    parser.set_defaults(left_out=[])
    for name, what in _OPTIONAL.items():
        flag = f"--no-{name.replace('_', '-')}"
        parser.add_argument(flag, dest="left_out", action="append_const", const=name, help=f"do not serve {what}")
    parser.add_argument("--repository", metavar="FOLDER", help=f"triton-chat's model repository ({DEFAULT_REPOSITORY})")
    return parser
