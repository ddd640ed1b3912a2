from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from chat_gateway.settings import PREFIX, STANDARD_OTLP_ENDPOINT
from tests.gateway.apps import app_for
from tests.gateway.fakes import FakeClient


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the machine that runs the tests."""
    for name in os.environ:
        if name.startswith(PREFIX) or name == STANDARD_OTLP_ENDPOINT:
            monkeypatch.delenv(name)


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient()


@pytest.fixture
def gateway(fake: FakeClient) -> Iterator[TestClient]:
    """A client of a gateway with default settings in front of `fake`."""
    with TestClient(app_for(fake)) as client:
        yield client
