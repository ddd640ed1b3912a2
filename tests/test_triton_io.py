"""What a model's process needs before its libraries are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from local.options import ROOT

REPOSITORY = ROOT / "model_repository"
# Imports a model as Triton's stub does and tells what the environment was when torch came.
PROGRAM = """
import builtins, os, sys, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
sys.modules["triton_python_backend_utils"].__getattr__ = lambda name: type(name, (), {})
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
import model
"""


@pytest.mark.parametrize("name", ["chat", "embeddings"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_that_wait_do_not_spin_for_long(name: str, given: dict[str, str], expected: str) -> None:
    """libgomp reads it once, when torch is imported; what the operator has set counts."""
    own = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    folder = REPOSITORY / name / "1"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env=own | given, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == expected, done.stderr
