from __future__ import annotations

from collections.abc import Iterator

import pytest

from chat_page.settings import KEY_VARIABLE, URL_VARIABLE, PageSettings
from tests.ui.fake_gateway import FakeGateway


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    gateway = FakeGateway()
    yield gateway
    gateway.stop()


@pytest.fixture
def settings(fake: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> PageSettings:
    """Those of a page over the fake, also in the environment."""
    monkeypatch.setenv(URL_VARIABLE, fake.url)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return PageSettings(gateway_url=fake.url)
