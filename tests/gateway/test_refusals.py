"""What a caller sees of the servers and of the queue, whichever route it asks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from starlette.testclient import TestClient

from chat_gateway.upstream.backlog import Backlogs
from tests.gateway.fakes import FakeClient, fails
from triton_chat.errors import NotComputedError
from triton_chat.types import Call, ChatEvent

ROUTES = {
    "/v1/chat/completions": {"model": "chat", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "chat", "prompt": "hi"},
}
BOTH = pytest.mark.parametrize("stream", [False, True])


@BOTH
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("excess_s", "advice"), [(0.1, "2"), (6.2, "7"), (4000.0, "60")])
def test_who_would_wait_for_too_long(
    gateway: TestClient,
    fake: FakeClient,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    stream: bool,
    excess_s: float,
    advice: str,
) -> None:
    monkeypatch.setattr(Backlogs, "excess_s", lambda *_: excess_s)
    refused = gateway.post(path, json={**ROUTES[path], "stream": stream})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, advice)
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("overloaded", "rate_limit_error")
    assert fake.streams == []


@BOTH
@pytest.mark.parametrize("path", ROUTES)
def test_a_sign_of_life_begins_no_answer(gateway: TestClient, fake: FakeClient, path: str, stream: bool) -> None:
    """The failure after it is a proper status."""
    failing = fails(NotComputedError("cannot be"))

    async def script(call: Call) -> AsyncIterator[ChatEvent]:
        yield ChatEvent("")
        async for event in failing(call):
            yield event

    fake.script = script
    answer = gateway.post(path, json={**ROUTES[path], "stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_computed")
