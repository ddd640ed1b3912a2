"""Lays out what tritonserver needs to find: its Python backend, the stub of this Python, and this Python's library."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from local.preflight import find_libpython, libpython_folders, libpython_name


@dataclass(frozen=True)
class TritonInstall:
    """The parts of tritonserver 2.51 as the nvidia-pytriton wheel carries them."""

    binary: Path
    backends: Path
    """For --backend-directory; holds `python/` with the stub of the running Python."""
    libraries: Path
    """For LD_LIBRARY_PATH; holds libpython alone."""


def prepare(cache: Path) -> TritonInstall:
    """Links the parts into `cache`. Raises FileNotFoundError when the wheel or libpython is missing."""
    version = sys.version_info[:2]
    name = f"{version[0]}.{version[1]}"
    wheel = _wheel_folder()
    folder = cache / f"triton-py{name}"
    stub = wheel / "python_backend_stubs" / name / "triton_python_backend_stub"
    for source in [*(wheel / "backends" / "python").glob("*.*"), stub]:
        _link(source, folder / "backends" / "python" / source.name)
    # Only libpython, not its whole folder: a conda environment keeps an old libstdc++ beside it.
    libpython = find_libpython(version, libpython_folders())
    if libpython is None:
        raise FileNotFoundError(f"{libpython_name(version)} is missing; run python -m local preflight for details")
    _link(libpython, folder / "lib" / libpython.name)
    return TritonInstall(wheel / "bin" / "tritonserver", folder / "backends", folder / "lib")


def _wheel_folder() -> Path:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("nvidia-pytriton is not installed; run python -m local preflight for details")
    return Path(spec.origin).parent / "tritonserver"


def _link(source: Path, target: Path) -> None:
    """Points `target` at `source`; safe when several servers start at once."""
    if not source.exists():
        raise FileNotFoundError(source)
    if target.is_symlink() and target.readlink() == source:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(source)
    fresh.replace(target)
