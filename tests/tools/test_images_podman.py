"""Where containers cannot run, that is said with its cause and a fix. podman is a script here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tomllib

from tools import needs
from tools.images import bases, development, wheels
from tools.images.podman import Podman, PodmanError

PODMAN = """\
#!/bin/sh
case "$*" in *"{failing}"*) echo 'one line' >&2; echo 'Error: {reason}' >&2; exit 125;; esac
echo "$CONTAINERS_CONF"
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(needs, "_SBIN", "")
    return folder


def install(folder: Path, *names: str, failing: str = "nothing", reason: str = "") -> None:
    for name in names:
        (folder / name).write_text(PODMAN.format(failing=failing, reason=reason))
        (folder / name).chmod(0o755)


def test_what_is_not_installed_is_named_with_a_fix(path: Path, tmp_path: Path) -> None:
    install(path, "mmdebstrap")
    problem = Podman(tmp_path).problem()
    assert problem is not None
    assert "podman, runc or crun not installed" in problem.cause
    assert "apt-get install podman runc" in problem.fix


def test_what_podman_says_is_passed_on(path: Path, tmp_path: Path) -> None:
    install(path, "podman", "runc", "mmdebstrap", failing="info", reason="no user namespaces")
    problem = Podman(tmp_path).problem()
    assert problem is not None
    assert problem.cause == "Containers cannot run here: Error: no user namespaces"
    assert "privileged" in problem.fix


def test_a_container_that_does_not_start_is_a_problem_too(path: Path, tmp_path: Path) -> None:
    install(path, "podman", "crun", "mmdebstrap", failing="run --rm", reason="runc: mount: operation not permitted")
    podman = Podman(tmp_path)
    assert podman.problem() is None
    problem = podman.container_problem("image")
    assert problem is not None
    assert "operation not permitted" in problem.cause


def test_the_command_fails_and_does_not_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bases, "problem", lambda: None)
    assert development.main([]) == 1
    assert "Containers cannot run here" in capsys.readouterr().err


def test_its_settings_and_storage_are_its_own(path: Path, tmp_path: Path) -> None:
    install(path, "podman", "crun")
    podman = Podman(tmp_path / "mine")
    assert f"--root={tmp_path / 'mine' / 'storage'}" in podman.command
    settings = tomllib.loads(Path(podman("info").strip()).read_text("utf-8"))
    assert settings["engine"]["runtime"] == "crun"
    assert [limit.split("=")[0] for limit in settings["containers"]["default_ulimits"]] == ["nofile", "nproc"]


def test_a_failure_shows_what_podman_said(path: Path, tmp_path: Path) -> None:
    install(path, "podman", failing="build", reason="no space left")
    with pytest.raises(PodmanError, match=r"podman build: exit code 125(?s:.*)no space left"):
        Podman(tmp_path)("build")


def test_another_python_than_that_of_the_base_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (*bases.PYTHON, 2))
    assert bases.problem() is None
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    problem = bases.problem()
    assert problem is not None
    assert problem.fix == "make clean, then make PYTHON=python3.11 test-image."


def test_wheels_are_downloaded_again_only_when_a_lock_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "dev.txt"
    lock.write_text("a==1\n")
    calls: list[list[str]] = []

    def download(command: list[str], *, check: bool) -> None:
        calls.append(command)
        (tmp_path / "wheels.part").mkdir()

    monkeypatch.setattr(wheels, "LOCK", lock)
    monkeypatch.setattr(wheels.subprocess, "run", download)
    assert [wheels.prepare(tmp_path / "wheels") for _ in range(2)] == [True, False]
    lock.write_text("a==2\n")
    assert wheels.prepare(tmp_path / "wheels")
    assert len(calls) == 2
