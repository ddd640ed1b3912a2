"""What a model's process needs before its libraries are imported."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from local.options import ROOT
from triton_chat_server.supervise import heartbeats

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


class Tensor:
    """Has a moment at which it is freed."""


class Response:
    """Holds tensors as Triton's does: what asks for them holds them too."""

    def __init__(self, *tensors: Tensor) -> None:
        self.held = list(tensors)

    def output_tensors(self) -> list[Tensor]:
        return list(self.held)


class Sender:
    """Drops all outputs, as for a caller who has asked for none of them, and notes what was freed by that."""

    freed: bool | None = None

    def send(self, response: Response, flags: int) -> None:
        watched = weakref.ref(response.held[0])
        response.held.clear()
        self.freed = watched() is None


HEARTBEAT = """
import sys
from triton_io.heartbeat import Heartbeat
beat = Heartbeat("m", lambda: "no luck", lambda: False)
print("ready", flush=True)
sys.stdin.read(1)
beat.close()
"""


def test_a_process_says_what_the_supervisor_reads(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HEARTBEAT],
        cwd=REPOSITORY / "chat" / "1",
        env={**os.environ, heartbeats.FOLDER_VARIABLE: str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    seen: set[int] = set()
    while len(seen) < 3:
        for heartbeat in heartbeats.read(tmp_path):
            seen.add(heartbeat.beats)
            assert heartbeat == heartbeats.Heartbeat("m", process.pid, heartbeat.beats, "no luck", finished=False)
    process.communicate(b".")
    assert list(tmp_path.iterdir()) == []


def test_no_tensor_is_freed_while_a_response_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """tritonserver 24.10 drops outputs that nobody asked for without holding Python's lock."""
    backend: Any = types.ModuleType("triton_python_backend_utils")
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    backend.__getattr__ = lambda name: type(name, (), {})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    for name in ("triton_io", "triton_io.caller", "triton_io.errors"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(REPOSITORY / "chat" / "1"))
    sender = Sender()
    import_module("triton_io.caller").Caller(sender).send(Response(Tensor()), is_last=True)
    assert sender.freed is False
