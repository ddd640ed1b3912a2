"""The Dockerfile, as hadolint and its users see it. What it builds is tested in tests/image."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HADOLINT = Path(sys.executable).with_name("hadolint")
DOCKERFILE = ROOT / "Dockerfile"
FILES = (DOCKERFILE, ROOT / "tools" / "images" / "triton-base.Containerfile")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    done = subprocess.run([HADOLINT, "--no-color", "--", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("FROM debian\nRUN cd /tmp\n")
    done = subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3006" in done.stdout


def test_no_rule_is_switched_off() -> None:
    assert [path for path in FILES if "hadolint" in path.read_text("utf-8")] == []
    assert list(ROOT.glob(".hadolint*")) == []


def test_all_that_is_copied_is_in_the_context() -> None:
    """.dockerignore leaves out everything but what it names."""
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    assert len(copied) > 8
    for source in (word for words in copied for word in words.split()):
        assert (ROOT / source).exists(), source
        assert any(Path(source).match(name) or Path(name).is_relative_to(source) for name in kept), source


@pytest.mark.parametrize("variable", ["TRITON_CHAT_GATEWAY_HOST", "STREAMLIT_SERVER_ADDRESS"])
def test_the_doors_are_open_to_ipv4_and_ipv6(variable: str) -> None:
    assert re.findall(rf"{variable}=(\S+)", DOCKERFILE.read_text("utf-8")) == ["::"]


def test_the_bases_are_the_same_triton_without_the_known_holes() -> None:
    found = re.findall(r"^ARG (\w+)=\S+/tritonserver:(\d+\.\d+)(-\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    (triton, version, kind), (vllm, other, other_kind) = found
    assert (triton, kind, vllm, other_kind) == ("TRITON_BASE", "-py3", "TRITON_VLLM_BASE", "-vllm-python-py3")
    assert version == other
    assert tuple(map(int, version.split("."))) >= (26, 6)


def test_the_image_with_vllm_differs_from_the_other_in_its_packages_alone() -> None:
    code = re.sub(r"^#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE)
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", code, re.MULTILINE | re.DOTALL))

    def lines(stage: str) -> list[str]:
        text = re.sub(r"-vllm\b| --system-site-packages|(?<=description=).*", "", stages[stage])
        return [line for line in text.splitlines() if line]

    assert lines("triton-vllm-files") == lines("triton-files")
    assert lines("triton-vllm") == lines("triton")
