"""What the Makefile says of its variables before it does anything."""

from __future__ import annotations

import os
import subprocess

import pytest

from local.options import ENVIRONMENTS, ROOT

_GIVEN = ("ENGINE", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _GIVEN}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["demo", "serve"])
def test_another_engine_is_refused_in_one_sentence(target: str) -> None:
    done = make(target, "ENGINE=tgi")
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "ENGINE must be native or vllm, not 'tgi'"


@pytest.mark.parametrize("engine", ["", *ENVIRONMENTS])
def test_every_engine_is_taken(engine: str) -> None:
    assert make("needs-engine", f"ENGINE={engine}").returncode == 0


def test_vllm_is_set_up_and_asked_for() -> None:
    done = make("--dry-run", "--always-make", "serve", "ENGINE=vllm")
    assert "--no-deps -r requirements/vllm.txt" in done.stdout
    assert done.stdout.rstrip().endswith("TRITON_CHAT_ENGINE='vllm' .venv/bin/python -m local serve")
    assert "requirements/vllm.txt" not in make("--dry-run", "--always-make", "serve").stdout
