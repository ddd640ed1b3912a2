"""The command line and the environment of tritonserver and its supervisor. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from local.install import TritonInstall
from local.options import TritonOptions
from local.preflight import packages_of
from triton_chat_server.serve import flags


def server_command(options: TritonOptions, install: TritonInstall, gpu: bool, shm_prefix: str) -> list[str]:
    """`options` has real ports here: tritonserver does not know 0 as "any"."""
    ours = [
        f"--backend-directory={install.backends}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--http-port={options.http_port}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-port={options.metrics_port}",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        *_model_control(options.models),
    ]
    given = [*ours, *options.extra_args]
    return [
        *(sys.executable, "-m", "triton_chat_server.supervise"),
        str(install.binary),
        *flags.server_flags(options.repository, gpu=gpu, given=given, address=options.host),
    ]


def server_environment(options: TritonOptions, install: TritonInstall, inherited: Mapping[str, str]) -> dict[str, str]:
    environment = dict(inherited)
    # The stub embeds Python: a venv's `python` first on PATH makes it take this venv for its own prefix.
    python = options.python_environment
    environment["PATH"] = _joined(str(python / "bin"), inherited.get("PATH"))
    environment["LD_LIBRARY_PATH"] = _joined(str(install.libraries), inherited.get("LD_LIBRARY_PATH"))
    environment["PYTHONPATH"] = _joined(str(packages_of(python)), inherited.get("PYTHONPATH"))
    if options.model is not None:
        environment["TRITON_CHAT_MODEL"] = options.model
    if options.engine_config is not None:
        environment["TRITON_CHAT_ENGINE_CONFIG"] = str(options.engine_config)
    if options.engine != TritonOptions.engine:
        environment["TRITON_CHAT_ENGINE"] = options.engine
    return environment | dict(options.extra_env)


def _model_control(models: tuple[str, ...]) -> list[str]:
    if not models:
        return []
    return ["--model-control-mode=explicit", *(f"--load-model={name}" for name in models)]


def _joined(first: str, rest: str | None) -> str:
    return f"{first}:{rest}" if rest else first
