from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.fake_hub import FakeHub


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRITON_CHAT_ENGINE_CONFIG", "TRITON_CHAT_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub().serving() as serving:
        yield serving
