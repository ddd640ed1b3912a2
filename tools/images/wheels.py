"""The wheels of the images' packages, for a build without network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.images.build import ROOT

LOCK = ROOT / "requirements" / "dev.txt"
BUILD_TOOL = "setuptools"
_STAMP = ".for"


@dataclass(frozen=True)
class Needed:
    """Lock files by name, and the folder of the cache for their wheels."""

    folder: str
    locks: tuple[str, ...]
    complete: bool = False
    """Whether all that is to be installed stands in them, of whatever version the packages ask for."""

    @property
    def files(self) -> list[Path]:
        return [ROOT / "requirements" / f"{name}.txt" for name in self.locks]


OF_ENGINE = {
    "native": Needed("wheels", ("server", "gateway", "ui")),
    "vllm": Needed("wheels-vllm", ("vllm", "vllm-image"), complete=True),
}


def prepare(folder: Path, needed: Needed = OF_ENGINE["native"]) -> bool:
    """Downloads with this Python and pip's own settings. Returns False where all were there already.

    Raises:
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    stamp = _stamp(needed)
    if (folder / _STAMP).exists() and (folder / _STAMP).read_text("utf-8") == stamp:
        return False
    fresh = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    files = [f"--requirement={path}" for path in needed.files]
    constraint = f"--constraint={LOCK}"
    if needed.complete:
        _download(fresh, "--no-deps", *files)
        _download(fresh, constraint, BUILD_TOOL)
    else:
        _download(fresh, constraint, *files, BUILD_TOOL)
    (fresh / _STAMP).write_text(stamp, "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return True


def _download(folder: Path, *what: str) -> None:
    flags = ["-q", "--disable-pip-version-check", "--only-binary=:all:", f"--dest={folder}"]
    subprocess.run([sys.executable, "-m", "pip", "download", *flags, *what], check=True)


def _stamp(needed: Needed) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in (*needed.files, LOCK):
        digest.update(path.read_bytes())
    return digest.hexdigest()
