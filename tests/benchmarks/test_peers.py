"""A peer that cannot run says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.peers import MissingError, Workshop, last_line, version_of


def test_quick_sets_nothing_up(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, tmp_path / "logs", set_up=False)
    for attempt in (workshop.accelerate, workshop.llama_server, lambda: workshop.vllm(tmp_path / "bin" / "python")):
        with pytest.raises(MissingError, match="--quick sets nothing up"):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_another_environment_of_vllm_is_not_made(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    with pytest.raises(MissingError, match=f"there is no {python}"):
        Workshop(tmp_path, tmp_path, set_up=True).vllm(python)


def test_llama_cpp_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"needs cmake and a C\+\+ compiler"):
        Workshop(tmp_path, tmp_path, set_up=True).llama_server()


def test_a_set_up_that_fails_says_its_last_line(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, tmp_path / "logs", set_up=True)
    with pytest.raises(MissingError, match=r"failed \(x\): no room \(see .*setup-x.log\)"):
        workshop._run([sys.executable, "-c", "print('begin'); print('no room'); exit(1)"], "x")


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    assert last_line(tmp_path / "none.log") == "it said nothing"
    log = tmp_path / "some.log"
    log.write_text("begin\n    | ValueError: no room\n    +------------\n\n")
    assert last_line(log) == "ValueError: no room"


def test_the_version_of_a_package() -> None:
    assert version_of(Path(sys.executable), "torch") == torch.__version__
    assert version_of(Path(sys.executable), "no-such-package") == ""
    assert version_of(Path("no-such-environment/bin/python"), "torch") == ""
