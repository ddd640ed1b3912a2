from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from local import preflight
from local.triton import LocalTriton
from tests.integration.servers import ServerFactory

HERE = Path(__file__).parent
TIMEOUT_S = 300
"""A test may start a server of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def able_to_serve() -> None:
    """Fails with the cause and the fix where no server can run here."""
    problems = preflight.before_start("127.0.0.1", (0, 0, 0), os.environ)
    if problems:
        pytest.fail("\n".join(map(str, problems)), pytrace=False)


@pytest.fixture(scope="session")
def triton(able_to_serve: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """One server with models/tiny-chat and the repository as it is, for all tests that change nothing in it.

    One thread computes: two that share busy cores wait for each other most of the time.
    """
    servers = ServerFactory(tmp_path_factory.mktemp("triton"))
    try:
        yield servers({"threads": 1})
    finally:
        servers.stop_all()


@pytest.fixture
def start_triton(able_to_serve: None, tmp_path: Path) -> Iterator[ServerFactory]:
    """Starts servers with settings of their own; see `ServerFactory`."""
    servers = ServerFactory(tmp_path)
    yield servers
    servers.stop_all()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the servers' logs to a failure."""
    report = yield
    if report.failed:
        for server in _servers_of(item):
            report.sections.append((f"log of tritonserver, port {server.settings.http_port}", server.log_tail(60)))
    return report


def _servers_of(item: pytest.Item) -> list[LocalTriton]:
    arguments = getattr(item, "funcargs", {}).values()
    started = [server for argument in arguments if isinstance(argument, ServerFactory) for server in argument.started]
    return started + [argument for argument in arguments if isinstance(argument, LocalTriton)]
