"""Waiting with a limit."""

from __future__ import annotations

import asyncio

import pytest

from chat_gateway.upstream.waits import within


async def test_what_comes_in_time() -> None:
    assert await within(10, asyncio.sleep(0, "it")) == "it"


async def test_what_does_not_is_cancelled() -> None:
    ended = asyncio.Event()

    async def works() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert await within(0.001, works()) is None
    await asyncio.wait_for(ended.wait(), 10)


async def test_its_error_is_raised() -> None:
    async def fails() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        await within(10, fails())


async def test_a_cancellation_is_not_lost_to_what_comes_at_the_same_time() -> None:
    came = asyncio.Event()
    task = asyncio.create_task(within(10, came.wait()))
    await asyncio.sleep(0)
    came.set()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
