"""What the tokenizer tells of each chat model, remembered: for those who need it, and for those who can do without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from triton_chat.errors import TritonChatError
from triton_chat.types import TokenizerInfo

_KEPT_S: Final = 60.0
"""A model may be loaded anew, from another checkpoint."""
_KEPT_FAILURE_S: Final = 5.0
_PATIENCE_S: Final = 1.0
"""A tokenizer is loaded when it is first asked for, which may take longer; then the answer is there the next time."""


@dataclass(slots=True)
class _Known:
    info: TokenizerInfo | None
    until: float


class Details:
    """By model. Belongs to one event loop."""

    def __init__(self, ask: Callable[[str], Awaitable[TokenizerInfo]]) -> None:
        self._ask = ask
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[TokenizerInfo]] = {}

    async def of(self, model: str) -> TokenizerInfo | None:
        """None as long as nothing is known; never raises, and never waits for long."""
        known = self._known.get(model)
        if known is None or known.until <= time.monotonic():
            await asyncio.wait((self._question(model),), timeout=_PATIENCE_S)
            known = self._known.get(model)
        return None if known is None else known.info

    async def needed(self, model: str) -> TokenizerInfo:
        """Waits for as long as the question takes where nothing is known.

        Raises:
            TritonChatError: how the question failed.
        """
        known = self._known.get(model)
        info = await self.of(model) if known is not None and known.info is not None else None
        if info is None:
            return await asyncio.shield(self._question(model))  # the others go on waiting if this caller leaves
        return info

    def _question(self, model: str) -> asyncio.Task[TokenizerInfo]:
        """One at a time, which all who ask wait for."""
        if model not in self._asking:
            self._asking[model] = asyncio.create_task(self._learn(model))
            self._asking[model].add_done_callback(lambda task: self._done(model, task))
        return self._asking[model]

    def _done(self, model: str, task: asyncio.Task[TokenizerInfo]) -> None:
        del self._asking[model]
        if not task.cancelled():
            task.exception()  # it may be that nobody waits for it any more

    async def _learn(self, model: str) -> TokenizerInfo:
        """What was known stays where the tokenizer fails."""
        try:
            info = await self._ask(model)
        except TritonChatError:
            last = self._known.get(model)
            self._known[model] = _Known(last.info if last else None, time.monotonic() + _KEPT_FAILURE_S)
            raise
        self._known[model] = _Known(info, time.monotonic() + _KEPT_S)
        return info
