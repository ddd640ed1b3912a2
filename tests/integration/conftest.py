from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from local import preflight
from local.gateway import LocalGateway
from local.options import ENVIRONMENTS
from local.service import LocalService
from local.triton import LocalTriton
from tests.integration import engines
from tests.integration.openai_calls import Asker
from tests.integration.servers import GatewayFactory, ServerFactory, failed_steps
from triton_chat import ChatClient

HERE = Path(__file__).parent
ALIASES = {"gpt-4o-mini": "chat", "text-embedding-3-small": "embeddings"}
TIMEOUT_S = 300
"""A test may start a server of its own."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    engines.select(config, items)
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def able_to_serve(engine_name: str) -> None:
    """Fails with the cause and the fix where no server can run here."""
    problems = preflight.before_start("127.0.0.1", (0, 0, 0), os.environ)
    if engine_name == engines.VLLM:
        problems += preflight.before_vllm(ENVIRONMENTS[engine_name])
    if problems:
        pytest.fail("\n".join(map(str, problems)), pytrace=False)


@pytest.fixture(scope="session")
def engine_name(request: pytest.FixtureRequest) -> str:
    """Of the servers that the tests start."""
    return str(request.config.getoption("--engine"))


@pytest.fixture(scope="session")
def triton(able_to_serve: None, engine_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """One server with models/tiny-chat and the repository as it is, for all tests that change nothing in it.

    One thread computes: two that share busy cores wait for each other most of the time.
    """
    servers = ServerFactory(tmp_path_factory.mktemp("triton"), engine_name)
    try:
        server = servers({"threads": 1})
        yield server
    finally:
        servers.stop_all()
    assert not failed_steps(server)


@pytest.fixture
def start_triton(able_to_serve: None, engine_name: str, tmp_path: Path) -> Iterator[ServerFactory]:
    """Starts servers with settings of their own; see `ServerFactory`."""
    servers = ServerFactory(tmp_path, engine_name)
    yield servers
    servers.stop_all()


@pytest.fixture(scope="session")
def gateway(triton: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    """One gateway in front of `triton`, with its default settings and an alias of each kind, for all tests."""
    gateways = GatewayFactory(tmp_path_factory.mktemp("gateway"))
    try:
        yield gateways(triton, ALIASES=json.dumps(ALIASES))
    finally:
        gateways.stop_all()


@pytest.fixture(scope="session")
def ask(gateway: LocalGateway) -> Iterator[Asker]:
    """Asks `gateway` through the `openai` package."""
    asker = Asker(gateway)
    yield asker
    asker.close()


@pytest.fixture
def client(ask: Asker) -> OpenAI:
    """Of `gateway`."""
    return ask.sync


@pytest.fixture(scope="session")
def engine(triton: LocalTriton) -> Iterator[ChatClient]:
    """Asks `triton` itself, for what the gateway must answer."""
    with ChatClient(triton.grpc_address) as client:
        yield client


@pytest.fixture
def start_gateway(able_to_serve: None, tmp_path: Path) -> Iterator[GatewayFactory]:
    """Starts gateways with settings of their own; see `GatewayFactory`."""
    gateways = GatewayFactory(tmp_path)
    yield gateways
    gateways.stop_all()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the servers' logs to a failure."""
    report = yield
    if report.failed:
        for server in _servers_of(item):
            report.sections.append((f"log of {server.name}, {server.options.log_path}", server.log_tail(60)))
    return report


def _servers_of(item: pytest.Item) -> list[LocalService]:
    arguments = getattr(item, "funcargs", {}).values()
    factories = [argument for argument in arguments if isinstance(argument, ServerFactory | GatewayFactory)]
    started: list[LocalService] = [server for factory in factories for server in factory.started]
    return started + [argument for argument in arguments if isinstance(argument, LocalService)]
