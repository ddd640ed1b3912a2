"""Looks whether there is an NVIDIA GPU, without torch, whose import takes seconds."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger("serve")

_DEVICES = Path("/dev")


def gpu_visible(environment: Mapping[str, str], devices: Path = _DEVICES, timeout_s: float = 10.0) -> bool:
    """By the driver's device files (a container sees those of its own GPUs, whatever their numbers), or nvidia-smi."""
    if environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    if any(devices.glob("nvidia[0-9]*")):
        return True
    nvidia_smi = shutil.which("nvidia-smi", path=environment.get("PATH", os.defpath))
    if nvidia_smi is None:
        return False
    try:
        listing = subprocess.run(  # noqa: S603 - a program of the driver
            [nvidia_smi, "-L"], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("nvidia-smi failed (%s); assuming that there is no GPU", type(error).__name__)
        return False
    return listing.returncode == 0 and "GPU 0" in listing.stdout
