"""One gateway in front of two tritonservers that have one name, as the pods behind a headless Service have."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from chat_gateway.app import create_app
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.triton import Upstream
from local.triton import LocalTriton
from tests.gateway.apps import served
from tests.gateway.tritons import Name
from tests.integration.calls import Metrics, eventually, settled
from tests.integration.servers import ServerFactory

pytestmark = pytest.mark.alone

ENGINE = {"threads": 1, "drain_seconds": 60}
MAX_AGE = "--grpc-max-connection-age=1000"
"""Milliseconds. Without a grace period, which would end running answers."""
SHORT: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
LONG: dict[str, Any] = {**SHORT, "max_tokens": 1500, "extra_body": {"ignore_eos": True}}


@dataclass
class Door:
    """A gateway and who asks it."""

    url: str
    caller: AsyncOpenAI
    name: Name

    async def ask(self, number: int) -> None:
        """So many requests at once; all of them succeed."""
        answers = await asyncio.gather(*(self.caller.chat.completions.create(**SHORT) for _ in range(number)))
        assert len(answers) == number

    async def run(self) -> asyncio.Task[str | None]:
        """A long answer that has begun; the result is its finish reason."""
        stream = await self.caller.chat.completions.create(**LONG, stream=True)
        await anext(aiter(stream))

        async def rest() -> str | None:
            reason = None
            async for chunk in stream:
                reason = chunk.choices[0].finish_reason or reason
            return reason

        return asyncio.create_task(rest())

    async def is_ready(self) -> bool:
        return (await asyncio.to_thread(httpx2.get, f"{self.url}/health/ready")).status_code == 200


@pytest.fixture
def tritons(start_triton: ServerFactory) -> tuple[LocalTriton, LocalTriton]:
    options: dict[str, Any] = {"models": ("chat", "tokenizer"), "extra_args": (MAX_AGE,), "exit_timeout_s": 70}
    first = start_triton(ENGINE, **options)
    return first, start_triton(ENGINE, host="127.0.0.2", grpc_port=first.options.grpc_port, **options)


@pytest.fixture
async def door(tritons: tuple[LocalTriton, LocalTriton]) -> AsyncIterator[Door]:
    """Has reached both of them."""
    settings = GatewaySettings()
    name = Name(*(triton.grpc_address for triton in tritons))
    with served(create_app(settings, upstream=Upstream(settings, lookup=name))) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as caller:
            door = Door(url, caller, name)
            while any(finished(triton) == 0 for triton in tritons):
                await door.ask(2)
            yield door


def finished(triton: LocalTriton) -> float:
    return Metrics(triton)("triton_chat_requests_total")


def running(triton: LocalTriton) -> int:
    return int(Metrics(triton)("triton_chat_requests_running"))


async def busy(door: Door, triton: LocalTriton) -> list[asyncio.Task[str | None]]:
    """Long answers, at least one of them by this server."""
    answers = [await door.run(), await door.run()]
    while running(triton) == 0:
        answers.append(await door.run())
        await asyncio.sleep(0.5)  # the gauge is set twice a second
    return answers


async def test_connections_end_and_no_request_does(door: Door, tritons: tuple[LocalTriton, LocalTriton]) -> None:
    before = [settled(triton) for triton in tritons]
    lookups = door.name.lookups
    answer = await door.run()
    while door.name.lookups < lookups + 3:
        await door.ask(4)
    assert await answer == "length"
    counts = [
        (settled(triton) - old)("triton_chat_requests_total") for triton, old in zip(tritons, before, strict=True)
    ]
    assert min(counts) > 0.3 * sum(counts)


async def test_one_that_is_killed_takes_only_its_own_answers_along(
    door: Door, tritons: tuple[LocalTriton, LocalTriton]
) -> None:
    first, second = tritons
    answers = await busy(door, second)
    await asyncio.to_thread(eventually, lambda: running(first) + running(second) == len(answers), 5)
    lost = running(second)
    await asyncio.to_thread(second.kill)
    for _ in range(5):
        await door.ask(8)
        assert await door.is_ready()
    ends = await asyncio.gather(*answers, return_exceptions=True)
    assert sum(isinstance(end, openai.APIError) for end in ends) == lost
    assert ends.count("length") == len(answers) - lost

    with LocalTriton(second.options) as second:
        while finished(second) == 0:
            await door.ask(2)


async def test_one_that_is_stuck_is_given_up_and_taken_again(
    door: Door, tritons: tuple[LocalTriton, LocalTriton]
) -> None:
    first, second = tritons
    answers = await busy(door, second)
    await asyncio.to_thread(eventually, lambda: running(first) + running(second) == len(answers), 5)
    lost, began = running(second), time.monotonic()
    _signal_all(second, signal.SIGSTOP)
    try:
        await door.ask(8)
        assert await door.is_ready()
        while sum(answer.done() and answer.exception() is not None for answer in answers) < lost:
            await door.ask(1)
        assert time.monotonic() - began < 10
    finally:
        _signal_all(second, signal.SIGCONT)
    ends = await asyncio.gather(*answers, return_exceptions=True)
    assert ends.count("length") == len(answers) - lost
    try:
        before = finished(second)
        while finished(second) == before:
            await door.ask(2)
    except OSError:
        _skip_if_it_died_of_waking(second)
        raise


async def test_one_that_stops_costs_nothing(door: Door, tritons: tuple[LocalTriton, LocalTriton]) -> None:
    _, second = tritons
    answers = await busy(door, second)
    stopping = asyncio.create_task(asyncio.to_thread(second.stop))
    rounds = 0
    while not stopping.done():
        await door.ask(8)
        assert await door.is_ready()
        assert (await asyncio.to_thread(httpx2.post, f"{door.url}/tokenize", json={"prompt": "a"})).status_code == 200
        rounds += 1
    assert rounds > 3
    assert await stopping == 0
    assert set(await asyncio.gather(*answers)) == {"length"}
    await door.ask(8)


def _skip_if_it_died_of_waking(triton: LocalTriton) -> None:
    """At times tritonserver 2.51 does: a lock that its Python backend shares with a model times out in their sleep."""
    if "boost::interprocess::lock_exception" in triton.options.log_path.read_text():
        pytest.skip("tritonserver 2.51 aborted when it woke up")


def _signal_all(triton: LocalTriton, number: signal.Signals) -> None:
    """Its supervisor, which would end a server that alone is stopped, and the server with its models."""
    for group in (triton.pid, triton.server_pid):
        os.killpg(group, number)
