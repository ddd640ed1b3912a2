"""Streams side by side, callers who leave, and the end of the gateway while one runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from local.gateway import LocalGateway
from local.triton import LocalTriton
from tests.integration.calls import Metrics, chat, eventually, settled
from tests.integration.openai_calls import CALL_S, Asker, options
from tests.integration.servers import GatewayFactory

pytestmark = pytest.mark.alone

HELLO: Any = chat("Hello!")
LONG: dict[str, Any] = {"model": "chat", "max_tokens": 1900, "temperature": 0, "extra_body": {"ignore_eos": True}}
"""Seconds of work."""
LONG_CHAT = {**LONG, "messages": HELLO}
FREED_WITHIN_S = 2.0
QUESTIONS = ["Who are you?", "你是谁？", "What is Kubernetes?", "什么是容器？"]


def running(triton: LocalTriton) -> float:
    return Metrics(triton)("triton_chat_requests_running")


# Side by side.


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_32_streams_are_as_if_alone(gateway: LocalGateway, engine: Any, endpoint: str) -> None:
    sampling: list[dict[str, Any]] = [
        {"max_tokens": 8 + number, "temperature": number % 3, "seed": number} for number in range(32)
    ]
    questions = [QUESTIONS[number % len(QUESTIONS)] for number in range(32)]

    async with AsyncOpenAI(**options(gateway)) as client:

        async def one(question: str, fields: dict[str, Any]) -> tuple[str, str]:
            text = reason = ""
            asked: Any = {"messages": chat(question)} if endpoint == "chat" else {"prompt": question}
            create: Any = client.chat.completions.create if endpoint == "chat" else client.completions.create
            async for chunk in await create(model="chat", stream=True, **asked, **fields):
                (choice,) = chunk.choices
                assert not reason, "something came after the end"
                text += (choice.delta.content if endpoint == "chat" else choice.text) or ""
                reason = choice.finish_reason or ""
            return text, reason

        together = await asyncio.gather(*map(one, questions, sampling))

    for number, (question, fields) in enumerate(zip(questions, sampling, strict=True)):
        asked: Any = {"messages": chat(question)} if endpoint == "chat" else {"prompt": question}
        alone = engine.generate(**asked, **fields)
        assert together[number] == (alone.text, alone.finish_reason)


def test_lines_of_a_plain_reader(gateway: LocalGateway, engine: Any) -> None:
    """As those read that have no package: line by line, `data: ` and JSON, until `[DONE]`."""
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 20}
    body = {"model": "chat", "messages": chat("你是谁？"), "stream": True, **fields}
    with (
        httpx2.Client(base_url=gateway.url, timeout=CALL_S) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == engine.generate(chat("你是谁？"), **fields).text
    assert [event["choices"][0]["finish_reason"] for event in events[-2:]] == [None, "length"]


def test_silence_is_filled_with_comments(
    triton: LocalTriton, start_gateway: GatewayFactory, ask: Asker, engine: Any
) -> None:
    """A limit so short that every wait is a silence; the package does not see the comments."""
    quick = start_gateway(triton, KEEP_ALIVE="0.001")
    body = {"model": "chat", "messages": HELLO, "stream": True, "max_tokens": 200, "ignore_eos": True, "seed": 1}
    with httpx2.Client(base_url=quick.url, timeout=CALL_S) as http:
        assert "\n: keep-alive\n\n" in http.post("/v1/chat/completions", json=body).text
    with OpenAI(**options(quick)) as client:
        chunks = list(client.chat.completions.create(**{**LONG_CHAT, "max_tokens": 200}, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == ask("chat", **{**LONG_CHAT, "max_tokens": 200}).only.text


# Callers who leave.


def cancelled(triton: LocalTriton, before: Metrics) -> tuple[float, float]:
    """Requests that have ended since, and how many of them were cancelled."""
    grown = settled(triton) - before
    return (
        grown("triton_chat_requests_total"),
        grown("triton_chat_requests_total", finish_reason="cancelled"),
    )


@pytest.mark.parametrize("n", [1, 4])
def test_a_stream_that_is_closed_frees_the_engine(client: OpenAI, triton: LocalTriton, n: int) -> None:
    before = settled(triton)
    with client.chat.completions.create(**LONG_CHAT, n=n, stream=True) as stream:
        next(iter(stream))
        eventually(lambda: running(triton) == n, within=5)
    eventually(lambda: running(triton) == 0, within=FREED_WITHIN_S)
    assert cancelled(triton, before) == (n, n)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_given_up_frees_the_engine(
    gateway: LocalGateway, triton: LocalTriton, n: int, stream: bool
) -> None:
    before = await asyncio.to_thread(settled, triton)
    async with AsyncOpenAI(**options(gateway)) as client:
        asked = asyncio.create_task(read(client, **LONG_CHAT, n=n, stream=stream))
        await asyncio.to_thread(eventually, lambda: running(triton) == n, 5)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        await asyncio.to_thread(eventually, lambda: running(triton) == 0, FREED_WITHIN_S)
    assert await asyncio.to_thread(cancelled, triton, before) == (n, n)


async def read(client: AsyncOpenAI, **fields: Any) -> None:
    answer = await client.chat.completions.create(**fields)
    if isinstance(answer, AsyncIterator):
        async for _ in answer:
            pass


def test_a_caller_out_of_patience_frees_the_engine(client: OpenAI, triton: LocalTriton) -> None:
    before = settled(triton)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(**LONG, prompt=["Once", "Twice"])
    eventually(lambda: running(triton) == 0, within=FREED_WITHIN_S)
    ended, of_them_cancelled = cancelled(triton, before)
    assert (
        1 <= ended == of_them_cancelled <= 2
    )  # one may still have been in Triton's queue, where the engine sees nothing


def test_who_leaves_is_counted_as_499(client: OpenAI, gateway: LocalGateway, triton: LocalTriton) -> None:
    left = 'triton_chat_gateway_requests_total{method="POST",route="/v1/completions",status="499"}'
    count = count_of(gateway, left)
    with client.completions.create(**LONG, prompt="Once", stream=True) as stream:
        next(iter(stream))
    eventually(lambda: count_of(gateway, left) == count + 1, within=FREED_WITHIN_S)
    settled(triton)


def count_of(gateway: LocalGateway, sample: str) -> float:
    lines = httpx2.get(gateway.metrics_url).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))


# The end of the gateway.


def test_sigterm_lets_a_stream_finish(triton: LocalTriton, start_gateway: GatewayFactory, ask: Asker) -> None:
    ending = start_gateway(triton, exit_timeout_s=20)
    fields = {**LONG_CHAT, "max_tokens": 500}
    with OpenAI(**options(ending)) as client, client.chat.completions.create(**fields, stream=True) as stream:
        chunks = [next(stream)]
        os.kill(ending.pid, signal.SIGTERM)
        eventually(lambda: httpx2.get(f"{ending.url}/health/ready").status_code == 503, within=2)
        assert httpx2.get(f"{ending.url}/health/live").status_code == 200
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model="chat", messages=HELLO)
        assert (refused.value.status_code, "retry-after" in refused.value.response.headers) == (503, True)
        chunks += stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ask("chat", **fields).only.text
    assert chunks[-1].choices[0].finish_reason == "length"
    eventually(lambda: ending.poll() is not None, within=5)
    assert ending.poll() == 0


def test_what_is_too_long_for_the_drain_time_is_cut_and_freed(
    triton: LocalTriton, start_gateway: GatewayFactory
) -> None:
    ending = start_gateway(triton, exit_timeout_s=1)
    before = settled(triton)
    with OpenAI(**options(ending)) as client:
        streams = [client.chat.completions.create(**LONG_CHAT, n=8, stream=True) for _ in range(2)]
        for stream in streams:
            next(stream)
        began = time.monotonic()
        os.kill(ending.pid, signal.SIGTERM)
        for stream in streams:
            with pytest.raises(openai.APIError, match="the gateway stopped") as cut:
                list(stream)
            assert cut.value.code == "unavailable"
    eventually(lambda: ending.poll() is not None, within=5)
    assert ending.poll() == 0
    assert 0.9 < time.monotonic() - began < 5
    ended, freed = cancelled(triton, before)
    assert ended == freed == 16


def test_idle_it_is_gone_at_once(triton: LocalTriton, start_gateway: GatewayFactory) -> None:
    ending = start_gateway(triton)
    os.kill(ending.pid, signal.SIGTERM)
    eventually(lambda: ending.poll() is not None, within=5)
    assert ending.poll() == 0
