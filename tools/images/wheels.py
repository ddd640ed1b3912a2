"""The wheels of the images' packages, for a build without network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tools.images.build import ROOT

REQUIREMENTS = tuple(ROOT / "requirements" / f"{name}.txt" for name in ("server", "gateway", "ui"))
LOCK = ROOT / "requirements" / "dev.txt"
BUILD_TOOL = "setuptools"
_STAMP = ".for"


def prepare(folder: Path) -> bool:
    """Downloads with this Python and pip's own settings. Returns False where all were there already.

    Raises:
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    stamp = _stamp()
    if (folder / _STAMP).exists() and (folder / _STAMP).read_text("utf-8") == stamp:
        return False
    fresh = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    files = [part for path in REQUIREMENTS for part in ("--requirement", str(path))]
    flags = ["-q", "--disable-pip-version-check", "--only-binary=:all:", f"--constraint={LOCK}", f"--dest={fresh}"]
    subprocess.run([sys.executable, "-m", "pip", "download", *flags, *files, BUILD_TOOL], check=True)
    (fresh / _STAMP).write_text(stamp, "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return True


def _stamp() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in (*REQUIREMENTS, LOCK):
        digest.update(path.read_bytes())
    return digest.hexdigest()
