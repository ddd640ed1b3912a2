"""tritonserver's command line and environment. Pure, but for looking whether a GPU is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from local.backend import TritonInstall
from local.settings import TritonSettings


def server_command(settings: TritonSettings, install: TritonInstall, gpu: bool, shm_prefix: str) -> list[str]:
    """`settings` has real ports here: tritonserver does not know 0 as "any"."""
    command = [
        str(install.binary),
        f"--model-repository={settings.repository}",
        f"--backend-directory={install.backends}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--http-address={settings.host}",
        f"--grpc-address={settings.host}",
        f"--metrics-address={settings.host}",
        f"--http-port={settings.http_port}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-port={settings.metrics_port}",
        "--metrics-interval-ms=1000",
        f"--exit-timeout-secs={settings.exit_timeout_s}",
        "--disable-auto-complete-config",
        *_model_control(settings.models),
    ]
    if not gpu:
        command += ["--model-config-name=cpu", "--allow-gpu-metrics=false"]
    return [*command, *settings.extra_args]


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


def gpu_visible(environment: Mapping[str, str]) -> bool:
    """Asks the driver, not torch, whose import takes seconds."""
    if environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    if Path("/dev/nvidia0").exists():
        return True
    nvidia_smi = shutil.which("nvidia-smi", path=environment.get("PATH", os.defpath))
    if nvidia_smi is None:
        return False
    listing = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, timeout=10, check=False)
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def _model_control(models: tuple[str, ...]) -> list[str]:
    if not models:
        return ["--model-control-mode=none"]
    return ["--model-control-mode=explicit", *(f"--load-model={name}" for name in models)]


def _joined(first: str, rest: str | None) -> str:
    return f"{first}:{rest}" if rest else first
