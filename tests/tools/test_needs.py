"""What the tests need is said before anything is run. Programs are scripts here, or missing."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local import preflight
from local.options import ROOT
from tools import needs, prometheus

FIRST = (preflight, needs, prometheus)
"""What `make` runs before the environment exists, with any Python."""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(needs, "_SBIN", "")
    return folder


def install(folder: Path, *names: str, prints: str = "") -> None:
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\necho {prints}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("target", "there", "cause", "fix"),
    [
        (
            "test-browser",
            [],
            "make test-browser needs Chromium and a font with Chinese",
            "install them (on Debian, apt-get install chromium fontconfig fonts-wqy-microhei)",
        ),
        (
            "test-browser",
            ["fc-list"],
            "make test-browser needs Chromium",
            "install it (on Debian, apt-get install chromium)",
        ),
        (
            "test-image",
            [],
            "make test-image needs podman, runc or crun and mmdebstrap",
            "install them (on Debian, apt-get install podman runc mmdebstrap)",
        ),
        (
            "test-fresh",
            ["podman", "crun"],
            "make test-fresh needs mmdebstrap and git",
            "install them (on Debian, apt-get install mmdebstrap git)",
        ),
    ],
)
def test_what_is_missing_is_one_sentence(path: Path, target: str, there: list[str], cause: str, fix: str) -> None:
    install(path, *there, prints="some.ttf")
    assert needs.problems(target) == [f"{cause}: {fix}"]


@pytest.mark.parametrize(
    ("target", "there"),
    [
        ("test", []),
        ("test-browser", ["google-chrome", "fc-list"]),
        ("test-browser", ["chromium", "fc-list"]),
        ("test-image", ["podman", "runc", "mmdebstrap"]),
        ("test-fresh", ["podman", "crun", "mmdebstrap", "git"]),
    ],
)
def test_what_is_there_is_not_missing(path: Path, target: str, there: list[str]) -> None:
    install(path, *there, prints="some.ttf")
    assert needs.problems(target) == []


def test_a_machine_whose_fonts_have_no_chinese(path: Path) -> None:
    install(path, "chromium", "fc-list")
    (problem,) = needs.problems("test-browser")
    assert "needs a font with Chinese" in problem


def test_what_the_environment_lacks_is_said_with_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "ENVIRONMENT", path / "none")
    monkeypatch.setattr(preflight, "before_install", lambda folder: [preflight.check_venv((3, 11), False)])
    python, browser = needs.problems("test-browser")
    assert "apt-get install python3.11-venv" in python
    assert "make test-browser needs Chromium" in browser


def test_packages_are_listed_once_and_without_what_make_sets_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [preflight.check_venv((3, 11), False), preflight.check_libpython((3, 11), [])]
    monkeypatch.setattr(preflight, "before_install", lambda folder: problems)
    python = ["python3.11-venv", "python3.11-dev"]
    page, others = ["chromium", "fontconfig", "fonts-wqy-microhei"], ["podman", "runc", "mmdebstrap", "git"]
    assert needs.all_packages() == [*python, *page, *others]


def test_make_asks_for_the_needs_of_each_target() -> None:
    """Before the environment, which takes minutes, and the tools of the chart."""
    rules = dict(re.findall(r"^([a-z-]+): (.*?) ##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for target in needs.NEEDS:
        assert rules[target].split()[0] == f"needs-{target}"
    for target in ("test-helm", "test-integration", "helm-tools"):
        assert rules[target].split()[0] == "needs-test"


@pytest.mark.parametrize(
    ("target", "interpreter", "said"),
    [
        ("test", sys.executable, "the tests of the alert rules need Prometheus, which could not be set up because "),
        ("test-browser", sys.executable, "make test-browser needs Chromium and a font with Chinese: "),
        ("test", "python3.99", "python3.99 is missing: install Python 3.11 or 3.12"),
        ("demo", "python3.99", "python3.99 is missing: install Python 3.11 or 3.12"),
    ],
)
def test_make_says_it_before_anything_is_run(tmp_path: Path, target: str, interpreter: str, said: str) -> None:
    for module in FIRST:
        copied = tmp_path / Path(str(module.__file__)).relative_to(ROOT)
        copied.parent.mkdir(exist_ok=True)
        shutil.copy(str(module.__file__), copied)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "dev.txt", tmp_path / "requirements")
    make = shutil.which("make")
    assert make
    environment = {"PATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [make, f"PYTHON={interpreter}", target],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    first, *rest = done.stderr.splitlines()
    assert first.startswith(said)
    assert [line for line in rest if not line.startswith("make: ")] == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "Makefile",
        "pyproject.toml",
        "requirements",
        "local",
        "tools",
    }


@pytest.mark.parametrize("module", FIRST, ids=lambda module: module.__name__)
def test_it_runs_on_a_bare_interpreter_of_any_age(module: object) -> None:
    source = Path(str(module.__file__)).read_text("utf-8")  # type: ignore[attr-defined]
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else _names(node))
    }
    assert imported <= {*sys.stdlib_module_names, "local", "tools"}


def _names(node: ast.AST) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
