from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from chat_gateway.http.disconnect import unless_gone
from triton_chat.errors import RequestCancelledError


def caller(*messages: str) -> Callable[[], Awaitable[dict[str, str]]]:
    """Says this much, and then nothing."""
    left = list(messages)

    async def receive() -> dict[str, str]:
        if not left:
            await asyncio.Event().wait()
        return {"type": left.pop(0)}

    return receive


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


async def test_the_result() -> None:
    assert await unless_gone(caller(), answer()) == 42


async def test_the_error() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await unless_gone(caller(), fail())


@pytest.mark.parametrize("messages", [("http.disconnect",), ("http.request", "http.disconnect")])
async def test_leaving_cancels_the_work(messages: tuple[str, ...]) -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(RequestCancelledError):
        await unless_gone(caller(*messages), work())
    assert cancelled.is_set()


async def test_being_cancelled_cancels_the_work() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(unless_gone(caller(), work()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()
