"""Waiting with a limit, for loops that are cancelled from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float, what: Awaitable[T]) -> T | None:
    """What it gives, or None where that takes longer.

    Before Python 3.12 `asyncio.wait_for` may swallow the cancellation of whoever waits; this never does.
    """
    task = asyncio.ensure_future(what)
    try:
        await asyncio.wait((task,), timeout=seconds)
        return task.result() if task.done() else None
    finally:
        task.cancel()
