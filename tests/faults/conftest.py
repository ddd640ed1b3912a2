"""What the tests of faults share: one stack that starts again what fails, and the figures that they measure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import preflight
from tests.faults.kept_stack import KeptStack

HERE = Path(__file__).parent
TIMEOUT_S = 300

_FIGURES = pytest.StashKey[list[tuple[str, str]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash[_FIGURES]:
        terminalreporter.section("what was measured")
        width = max(len(name) for name, _ in figures)
        for name, words in figures:
            terminalreporter.line(f"{name:<{width}}  {words}")


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Iterator[dict[str, float]]:
    """Seconds and counts by name, which the end of the run shows."""
    found: dict[str, float] = {}
    yield found
    words = ", ".join(
        f"{name} {value:g}" if value == int(value) else f"{name} {value:.1f}" for name, value in found.items()
    )
    request.config.stash[_FIGURES].append((request.node.name, words))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptStack]:
    """tritonserver with all models, the gateway and the page, as `make serve` keeps them running."""
    problems = preflight.before_start("127.0.0.1", (0, 0, 0), os.environ)
    if problems:
        pytest.fail("\n".join(map(str, problems)), pytrace=False)
    with KeptStack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(autouse=True)
def _whole(request: pytest.FixtureRequest) -> None:
    """Each test begins with a stack that works, whatever the last one did."""
    if "stack" in request.fixturenames:
        request.getfixturevalue("stack").wait_until_whole()
