from __future__ import annotations

import logging
from pathlib import Path

import pytest

from triton_chat_server.serve.gpu import gpu_visible

NO_PROGRAMS = {"PATH": "/nonexistent"}


def fake_nvidia_smi(folder: Path, line: str, code: int) -> dict[str, str]:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{line}'\nexit {code}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:/bin"}


@pytest.mark.parametrize("value", ["", "-1", " -1 "])
def test_hidden_devices_are_no_gpu(value: str, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    assert not gpu_visible({"CUDA_VISIBLE_DEVICES": value, **NO_PROGRAMS}, tmp_path)
    assert gpu_visible({"CUDA_VISIBLE_DEVICES": "0", **NO_PROGRAMS}, tmp_path)


def test_a_container_may_have_the_fourth_gpu_alone(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert not gpu_visible(NO_PROGRAMS, tmp_path)
    (tmp_path / "nvidia3").touch()
    assert gpu_visible(NO_PROGRAMS, tmp_path)


@pytest.mark.parametrize(
    ("line", "code", "expected"),
    [("GPU 0: NVIDIA H100", 0, True), ("No devices were found", 0, False), ("GPU 0: driver failed", 9, False)],
)
def test_nvidia_smi_is_asked(tmp_path: Path, line: str, code: int, expected: bool) -> None:
    assert gpu_visible(fake_nvidia_smi(tmp_path, line, code), tmp_path) == expected


def test_nvidia_smi_that_hangs_is_no_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environment = fake_nvidia_smi(tmp_path, "", 0)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    with caplog.at_level(logging.WARNING):
        assert not gpu_visible(environment, tmp_path, timeout_s=0.1)
    assert "nvidia-smi failed (TimeoutExpired)" in caplog.text
