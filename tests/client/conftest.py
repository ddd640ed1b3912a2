from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.fake_server import FakeTriton
from triton_chat.client import ChatClient


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.stop()


@pytest.fixture
def client(fake: FakeTriton) -> Iterator[ChatClient]:
    with ChatClient(fake.url) as chat_client:
        yield chat_client
