from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fresh.machine import PACKAGES, Machine
from tools.images import bases
from tools.images.podman import Podman

HERE = Path(__file__).parent
TIMEOUT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.fresh)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def podman() -> Podman:
    """Fails with the cause and the fix where no container can run."""
    podman = Podman()
    problem = bases.problem() or podman.problem()
    if problem:
        pytest.fail(str(problem), pytrace=False)
    return podman


@pytest.fixture(scope="session")
def image(podman: Podman) -> str:
    image = bases.debian(podman, PACKAGES)
    problem = podman.container_problem(image)
    if problem:
        pytest.fail(str(problem), pytrace=False)
    return image


@pytest.fixture(scope="session")
def offline(podman: Podman, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(podman, image, tmp_path_factory.mktemp("offline"))
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def machine(podman: Podman, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Reaches Debian's mirrors."""
    machine = Machine(podman, image, tmp_path_factory.mktemp("machine"), network="host")
    yield machine
    machine.close()
