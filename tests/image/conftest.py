from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.image.containers import TINY, Container, Containers
from tools.images import bases, development
from tools.images.podman import Podman

HERE = Path(__file__).parent
TIMEOUT_S = 300
"""A test may start a Triton of its own."""
WITH_VLLM = HERE / "test_vllm.py"
VLLM_TIMEOUT_S = 600
"""It loads for longer, on a busy machine much longer."""
_SIZES = pytest.StashKey[dict[str, int]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            vllm = item.path == WITH_VLLM
            item.add_marker(pytest.mark.image_vllm if vllm else pytest.mark.image)
            item.add_marker(pytest.mark.timeout(VLLM_TIMEOUT_S if vllm else TIMEOUT_S))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for image, size in config.stash.get(_SIZES, {}).items():
        terminalreporter.write_line(f"{image}: {size / 1e6:,.0f} MB, without a GPU's libraries")


@pytest.fixture(scope="session")
def podman() -> Podman:
    """Fails with the cause and the fix where no container can run."""
    podman = Podman()
    problem = bases.problem() or podman.problem()
    if problem:
        pytest.fail(str(problem), pytrace=False)
    return podman


@dataclass(frozen=True)
class Image:
    name: str
    size: int
    """In bytes, the base included."""
    config: dict[str, Any]
    health: dict[str, Any]


@pytest.fixture(scope="session")
def images(podman: Podman, request: pytest.FixtureRequest) -> dict[str, Image]:
    """By target. They are built by `make test-image` before the tests."""
    found = {target: look_up(podman, name) for target, name in development.images().items()}
    request.config.stash[_SIZES] = {image.name: image.size for image in found.values()}
    return found


def look_up(podman: Podman, name: str) -> Image:
    """Fails where it is not built."""
    if not podman.has(name):
        pytest.fail(
            f"there is no image {name}\n  fix: make test-image builds it, or make test-image-vllm", pytrace=False
        )
    (told,) = json.loads(podman("inspect", "--type=image", name))
    return Image(name, told["Size"], told["Config"], told["Healthcheck"])


@pytest.fixture(scope="session")
def served(podman: Podman, images: dict[str, Image]) -> Iterator[Containers]:
    """For containers that all tests share."""
    containers = Containers(podman, {target: image.name for target, image in images.items()})
    yield containers
    containers.close()


@pytest.fixture(scope="session")
def triton(served: Containers) -> Container:
    """With models/tiny-chat, on its default ports."""
    return served.triton(f"--env=TRITON_CHAT_MODEL={TINY}")


@pytest.fixture(scope="session")
def gateway(served: Containers, triton: Container) -> Container:
    """Healthy, in front of `triton`, with its default settings."""
    gateway = served.gateway(triton)
    gateway.wait_until_healthy()
    return gateway


@pytest.fixture(scope="session")
def ui(served: Containers, gateway: Container) -> Container:
    """Healthy, over `gateway`, with its default settings."""
    ui = served.ui(f"--network=container:{gateway.name}")
    ui.wait_until_healthy()
    return ui


@pytest.fixture
def containers(podman: Podman, images: dict[str, Image]) -> Iterator[Containers]:
    """For containers of one test."""
    containers = Containers(podman, {target: image.name for target, image in images.items()})
    yield containers
    containers.close()
