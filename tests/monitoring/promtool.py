"""The real promtool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

INSTALL = "is missing: run `apt-get install prometheus` (Debian, Ubuntu); it brings prometheus and promtool"


def run(*arguments: str | Path) -> str:
    """What it says. Where it finds something wrong, or is not installed, the test fails and says so."""
    if shutil.which("promtool") is None:
        pytest.fail(f"promtool {INSTALL}", pytrace=False)
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.fail(f"promtool {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout
