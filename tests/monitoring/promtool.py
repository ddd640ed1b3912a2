"""The real promtool."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import prometheus


def run(*arguments: str | Path) -> str:
    """What it says. Where it finds something wrong, or is not there, the test fails and says so."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.fail(f"promtool {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


def program(name: str) -> str:
    """The path of promtool or prometheus; where it is missing, the test fails and says what to do."""
    found = prometheus.find(name)
    if found is None:
        pytest.fail(f"{name} is missing: run `make helm-tools`", pytrace=False)
    return found
