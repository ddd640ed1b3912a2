"""`make test` and `.ci/run` on a Debian that has only make, g++ and Python; packages come from Debian's mirrors."""

from __future__ import annotations

import re

import pytest

from tests.fresh.machine import Machine

NOT_SET_UP = "the tests of the alert rules need Prometheus, which could not be set up because "
PUT_ON_PATH = "put prometheus and promtool on PATH (on Debian or Ubuntu, apt-get install prometheus)"
PYTHON_PACKAGES = ["python3.11-dev", "python3.11-venv"]
PACKAGES = {
    "test": [],
    "test-browser": ["chromium fontconfig fonts-wqy-microhei"],
    "test-image": ["podman runc mmdebstrap"],
}
TESTS = "tests/monitoring/test_alerts.py tests/integration/test_prometheus.py"
"""The real promtool on the rules of the chart, and a real Prometheus."""


@pytest.mark.parametrize("target", PACKAGES)
def test_what_only_root_can_install_is_said_first(offline: Machine, target: str) -> None:
    done = offline.run(f"make {target}")
    assert done.returncode == 2
    assert re.findall(r"apt-get install ([\w. -]+)", done.stderr) == PYTHON_PACKAGES + PACKAGES[target]
    assert re.findall("^.*Error.*$", done.stderr, re.MULTILINE) == done.stderr.splitlines()[-1:], "of make alone"
    assert done.stdout == ""
    assert "no" in offline.done("test -e .venv -o -e .cache || echo no")


def test_without_a_network_it_says_so(offline: Machine) -> None:
    done = offline.run("python3 -c 'import sys; from tools import needs; sys.exit(needs.provide_prometheus())'")
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"{NOT_SET_UP}its package could not be downloaded (Temporary failure resolving ")
    assert sentence.endswith(f"): {PUT_ON_PATH}")


def test_without_apt_it_says_so(offline: Machine) -> None:
    offline.done("mv /usr/bin/apt-get /usr/bin/no-apt-get", user="root")
    try:
        done = offline.run("python3 -c 'import sys; from tools import needs; sys.exit(needs.provide_prometheus())'")
    finally:
        offline.done("mv /usr/bin/no-apt-get /usr/bin/apt-get", user="root")
    assert done.returncode == 1
    assert done.stderr == f"{NOT_SET_UP}only apt-get could download it, which is not here: {PUT_ON_PATH}\n"


@pytest.fixture(scope="module")
def shown(machine: Machine) -> list[str]:
    """What `.ci/run` runs after it has installed what root must; make is told to show it, and to run nothing."""
    return machine.done("bash .ci/run", user="root", environment={"MAKEFLAGS": "n"}).splitlines()


def test_ci_runs_everything(shown: list[str]) -> None:
    side_by_side = "--numprocesses 2 --dist loadfile"
    assert [line.split("pytest ")[1] for line in shown if "-m pytest" in line] == [
        f'-m "not browser and not faults and not image and not image_vllm and not fresh and not vllm" {side_by_side}',
        f"-m vllm {side_by_side} tests/vllm_engine",
        "-m fresh tests/fresh",
        "-m faults tests/faults",
        "-m browser tests/browser",
        "-m image tests/image",
        f"-m integration --engine vllm {side_by_side} tests/integration",
    ]


def test_ci_installs_what_make_cannot(machine: Machine, shown: list[str]) -> None:
    machine.done("make needs-test-browser needs-test-image needs-test-fresh")
    assert machine.run("command -v prometheus || command -v promtool").returncode == 1, "that make can"


def test_where_no_mirror_answers_nothing_is_run(machine: Machine, shown: list[str]) -> None:
    machine.done("rm -rf .venv .cache")
    refused = machine.run("make test", environment={"http_proxy": "http://127.0.0.1:9"})
    assert refused.returncode == 2
    sentence, end = refused.stderr.splitlines()
    assert sentence.startswith(f"{NOT_SET_UP}its package could not be downloaded (")
    assert sentence.endswith(f"): {PUT_ON_PATH}")
    assert end.startswith("make: ")
    assert machine.done("ls -A .cache") == ""
    assert machine.run("test -e .venv").returncode == 1


def test_make_sets_up_the_rest_without_root(machine: Machine, shown: list[str]) -> None:
    machine.done("rm -rf .venv .cache")
    machine.lend_packages()
    collected = machine.done("make test", environment={"PYTEST_ADDOPTS": "--collect-only --quiet"})
    assert collected.startswith("Prometheus for the tests of the alert rules")
    assert machine.done("ls .cache/prometheus").split() == ["prometheus", "promtool"]
    tested = machine.done("make test", environment={"PYTEST_ADDOPTS": TESTS})
    assert tested.startswith("==="), "set up once"
    assert " passed" in tested
