"""What is not the caller's fault: a full queue, a server that dies and comes back, a limit that passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from local.gateway import LocalGateway
from local.triton import LocalTriton
from tests.integration.calls import Metrics, chat, connect, eventually, pending, settled
from tests.integration.openai_calls import options
from tests.integration.servers import GatewayFactory, ServerFactory
from tests.integration.test_queue import NORMAL, backlog

HELLO: Any = chat("Hello!")
SHORT: dict[str, Any] = {"model": "chat", "messages": HELLO, "max_tokens": 2}
ENDLESS: dict[str, Any] = {**SHORT, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
NARROW = {"max_sequences": 1, "max_step_tokens": 16, "threads": 1}
LIMITS = {"max_queue_size: 256": "max_queue_size: 2"}
BACK_WITHIN_S = 30
"""A new connection is tried at growing intervals."""


@pytest.fixture
def narrow(start_triton: ServerFactory) -> LocalTriton:
    """One place, and two to wait in."""
    return start_triton(NARROW, config_overrides={"chat": LIMITS}, models=("chat",))


@pytest.fixture
def door(narrow: LocalTriton, start_gateway: GatewayFactory) -> LocalGateway:
    """To `narrow`."""
    return start_gateway(narrow, RETRY_AFTER="7")


@pytest.fixture
def caller(door: LocalGateway) -> Iterator[OpenAI]:
    with OpenAI(**options(door)) as client:
        yield client


def test_a_full_queue_is_a_rate_limit_with_advice(narrow: LocalTriton, caller: OpenAI) -> None:
    with connect(narrow) as stub, backlog(narrow, stub) as waiting:
        waiting.queue(NORMAL, NORMAL)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as refused:
                caller.chat.completions.create(**SHORT, stream=stream)
            assert (refused.value.code, refused.value.type) == ("overloaded", "rate_limit_error")
            assert refused.value.response.headers["retry-after"] == "7"
    eventually(lambda: pending(Metrics(narrow)) == 0, within=5)
    assert caller.chat.completions.create(**SHORT).choices


def test_a_server_that_dies_and_comes_back(narrow: LocalTriton, door: LocalGateway, caller: OpenAI) -> None:
    stream = caller.chat.completions.create(**ENDLESS, stream=True)
    assert next(stream).choices
    narrow.kill()
    with pytest.raises(openai.APIError) as cut:
        list(stream)
    assert (type(cut.value), cut.value.type) == (openai.APIError, "service_unavailable_error")
    assert narrow.grpc_address not in str(cut.value)

    for streamed in (False, True):
        assert_unavailable(lambda streamed=streamed: caller.chat.completions.create(**SHORT, stream=streamed))
    assert_unavailable(lambda: caller.embeddings.create(model="embeddings", input="a"))
    eventually(lambda: httpx2.get(f"{door.url}/health/ready").status_code == 503, within=4)  # a short memory
    assert httpx2.get(f"{door.url}/health/ready").headers["retry-after"] == "7"
    assert_unavailable(lambda: caller.models.list())
    assert httpx2.get(f"{door.url}/health/live").status_code == 200
    assert httpx2.get(f"{door.url}/metrics").status_code == 200

    with LocalTriton(narrow.options):
        eventually(lambda: httpx2.get(f"{door.url}/health/ready").status_code == 200, within=BACK_WITHIN_S)
        assert caller.chat.completions.create(**SHORT).choices


def assert_unavailable(call: Callable[[], object]) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        call()
    assert (refused.value.status_code, refused.value.type) == (503, "service_unavailable_error")
    assert refused.value.response.headers["retry-after"] == "7"
    assert "127.0.0.1" not in refused.value.message


def test_an_answer_past_its_limit_is_ended(triton: LocalTriton, start_gateway: GatewayFactory) -> None:
    before = settled(triton)
    with OpenAI(**options(start_gateway(triton, REQUEST_TIMEOUT="0.7"))) as hasty:
        stream = hasty.chat.completions.create(**ENDLESS, stream=True)
        with pytest.raises(openai.APIError) as cut:
            list(stream)
        assert (type(cut.value), cut.value.code) == (openai.APIError, "timeout")
        with pytest.raises(openai.InternalServerError) as late:
            hasty.chat.completions.create(**ENDLESS)
        assert (late.value.status_code, late.value.code) == (503, "timeout")
    eventually(lambda: Metrics(triton)("triton_chat_requests_running") == 0, within=2)
    assert (settled(triton) - before)("triton_chat_requests_total", finish_reason="cancelled") == 2
