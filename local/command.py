"""tritonserver's command line and environment. Pure."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from local.backend import TritonInstall
from local.settings import TritonSettings
from triton_chat_server.serve import flags


def server_command(settings: TritonSettings, install: TritonInstall, gpu: bool, shm_prefix: str) -> list[str]:
    """`settings` has real ports here: tritonserver does not know 0 as "any"."""
    ours = [
        f"--backend-directory={install.backends}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--http-port={settings.http_port}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-port={settings.metrics_port}",
        f"--exit-timeout-secs={settings.exit_timeout_s}",
        *_model_control(settings.models),
    ]
    given = [*ours, *settings.extra_args]
    return [
        str(install.binary),
        *flags.server_flags(settings.repository, gpu=gpu, given=given, address=settings.host),
    ]


def server_environment(
    settings: TritonSettings, install: TritonInstall, inherited: Mapping[str, str]
) -> dict[str, str]:
    environment = dict(inherited)
    # The stub embeds Python: this venv's `python` first on PATH makes it take this venv for its own prefix.
    environment["PATH"] = _joined(str(Path(sys.executable).parent), inherited.get("PATH"))
    environment["LD_LIBRARY_PATH"] = _joined(str(install.libraries), inherited.get("LD_LIBRARY_PATH"))
    environment["PYTHONPATH"] = _joined(sysconfig.get_path("purelib"), inherited.get("PYTHONPATH"))
    if settings.model is not None:
        environment["TRITON_CHAT_MODEL"] = settings.model
    if settings.engine_config is not None:
        environment["TRITON_CHAT_ENGINE_CONFIG"] = str(settings.engine_config)
    return environment | dict(settings.extra_env)


def _model_control(models: tuple[str, ...]) -> list[str]:
    if not models:
        return []
    return ["--model-control-mode=explicit", *(f"--load-model={name}" for name in models)]


def _joined(first: str, rest: str | None) -> str:
    return f"{first}:{rest}" if rest else first
