"""The sizes that a request may have are settings of the engine: what they say holds at the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.integration.calls import chat
from tests.integration.openai_calls import CALL_S
from tests.integration.servers import GatewayFactory, ServerFactory

SETTINGS = {
    "threads": 1,
    "max_logprobs": 40,
    "max_stop_strings": 3,
    "max_stop_length": 300,
    "max_logit_bias": 1100,
    "max_messages": 2,
}
"""Each above its default or below it."""
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "chat", "messages": chat("Hello!"), "max_tokens": 1},
    "/v1/completions": {"model": "chat", "prompt": "Hello!", "max_tokens": 1},
}


AT_THE_LIMIT: dict[str, tuple[str, str, Any, int]] = {
    "top_logprobs": ("/v1/chat/completions", "top_logprobs", lambda n: {"logprobs": True, "top_logprobs": n}, 40),
    "logprobs": ("/v1/completions", "logprobs", lambda n: {"logprobs": n}, 40),
    "logprobs of an echo": ("/v1/completions", "logprobs", lambda n: {"logprobs": n, "echo": True}, 40),
    "prompt_logprobs": ("/v1/chat/completions", "prompt_logprobs", lambda n: {"prompt_logprobs": n}, 40),
    "stop strings": ("/v1/chat/completions", "stop", lambda n: {"stop": ["\x1f"] * n}, 3),
    "length of a stop string": ("/v1/completions", "stop", lambda n: {"stop": "x" * n}, 300),
    "logit_bias": ("/v1/completions", "logit_bias", lambda n: {"logit_bias": {str(i): 0 for i in range(n)}}, 1100),
    "stop_token_ids": ("/v1/chat/completions", "stop_token_ids", lambda n: {"stop_token_ids": list(range(n))}, 1100),
    "messages": ("/v1/chat/completions", "messages", lambda n: {"messages": chat("Hello!") * n}, 2),
}
"""Route, the field that a refusal names, the fields for a size, and the largest size that is taken."""

NOT_FOR_STREAMS = {"prompt_logprobs"}


@pytest.fixture(scope="module")
def http(able_to_serve: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A gateway with its default settings in front of an engine with other ones."""
    servers = ServerFactory(tmp_path_factory.mktemp("triton"))
    gateways = GatewayFactory(tmp_path_factory.mktemp("gateway"))
    try:
        gateway = gateways(servers(SETTINGS))
        with httpx2.Client(base_url=gateway.url, timeout=CALL_S) as client:
            yield client
    finally:
        gateways.stop_all()
        servers.stop_all()


@pytest.mark.parametrize(
    ("case", "stream"),
    [(case, stream) for case in AT_THE_LIMIT for stream in (False, True) if not (stream and case in NOT_FOR_STREAMS)],
)
def test_a_limit_is_that_of_the_engine(http: httpx2.Client, case: str, stream: bool) -> None:
    path, name, fields, limit = AT_THE_LIMIT[case]
    within = http.post(path, json={**BODIES[path], **fields(limit), "stream": stream})
    assert within.status_code == 200, within.text
    beyond = http.post(path, json={**BODIES[path], **fields(limit + 1), "stream": stream})
    error = beyond.json()["error"]
    assert (beyond.status_code, error["param"], error["code"]) == (400, name, "invalid_value")
    assert f"{limit + 1} " in error["message"]
    assert f"at most {limit} are allowed" in error["message"]


def test_as_many_alternatives_as_were_asked_for(http: httpx2.Client) -> None:
    body = {**BODIES["/v1/chat/completions"], "logprobs": True, "top_logprobs": 40}
    (choice,) = http.post("/v1/chat/completions", json=body).json()["choices"]
    assert [len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]] == [40]
