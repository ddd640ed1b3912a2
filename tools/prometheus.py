"""Prometheus and promtool, for the tests of the alert rules: those on PATH, else Debian's or Ubuntu's own in .cache.

Standard library only, and no syntax newer than Python 3.8: `make` runs this before the environment exists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("prometheus", "promtool")
PACKAGE = "prometheus"
FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "prometheus"

_TIMEOUT_S = 300.0
_CONFIGURATION = """\
// What the machine does after an update of its own package lists is not for ours.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages { "none"; };
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
// As root, apt would download as a user who may not come into our folder.
APT::Sandbox::User "root";
"""


class SetUpError(RuntimeError):
    """Why it could not be set up, as it stands after "because"."""


def find(program: str) -> str | None:
    """The path of one of PROGRAMS."""
    return shutil.which(program) or shutil.which(program, path=str(FOLDER))


def is_there() -> bool:
    return all(map(find, PROGRAMS))


def set_up() -> None:
    """Downloads the package and keeps its two programs, as a plain user: nothing outside .cache changes.

    Raises:
        SetUpError: this is no Debian or Ubuntu, or no package source answers.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SetUpError("only apt-get could download it, which is not here")
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER.name}.", dir=str(FOLDER.parent)) as work:
        programs = _unpack(_download(Path(work)), Path(work) / "unpacked")
        for program in programs:
            _succeed([str(program), "--version"], f"{program.name} of its package does not run here")
        _keep(programs)


def _download(work: Path) -> Path:
    """The package. The machine's package lists may be old or missing, so these are our own."""
    updated = _apt(work, "update")
    downloaded = _apt(work, "download", PACKAGE)
    package = next(work.glob("*.deb"), None)
    if downloaded.returncode or package is None:
        raise SetUpError(f"its package could not be downloaded ({_reason(downloaded.stdout, updated.stdout)})")
    return package


def _apt(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    for folder in ("lists", "archives"):
        (work / folder / "partial").mkdir(parents=True, exist_ok=True)
    configuration = work / "apt.conf"
    configuration.write_text(_CONFIGURATION, encoding="utf-8")
    places = {"State": work, "State::lists": work / "lists", "Cache": work, "Cache::archives": work / "archives"}
    options = [f"--option=Dir::{name}={folder}" for name, folder in places.items()]
    return _run(["apt-get", f"--config-file={configuration}", *options, *arguments], work)


def _unpack(package: Path, folder: Path) -> list[Path]:
    _succeed(["dpkg-deb", "--extract", str(package), str(folder)], "its package could not be unpacked")
    return [folder / "usr" / "bin" / program for program in PROGRAMS]


def _keep(programs: Sequence[Path]) -> None:
    """All of them, or none."""
    whole = programs[0].parent.with_name("whole")
    whole.mkdir()
    for program in programs:
        program.rename(whole / program.name)
    shutil.rmtree(str(FOLDER), ignore_errors=True)
    whole.rename(FOLDER)


def _succeed(command: Sequence[str], otherwise: str) -> None:
    try:
        failed = _run(command).returncode != 0
    except OSError:
        failed = True
    if failed:
        raise SetUpError(otherwise)


def _run(command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SetUpError(f"{Path(command[0]).name} did not end within {_TIMEOUT_S:.0f} s") from None


def _reason(*outputs: str) -> str:
    """What apt could not fetch and why, without the address; else its last error."""
    for pattern in (r"Failed to fetch \S+\s+(.+)", r"^E: (.+)"):
        for output in outputs:
            found = re.search(pattern, output, re.MULTILINE)
            if found:
                return found[1].strip().rstrip(".")
    return "apt-get gave no reason"
