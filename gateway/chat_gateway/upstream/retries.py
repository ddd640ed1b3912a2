"""Asking again where a server went away before it had answered: with several of them, the next one answers."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from triton_chat.errors import ServerStoppingError, ServerUnavailableError

T = TypeVar("T")

BROKEN_TRIES: Final = 2
"""A request may be what made its server go away, so it gets one more."""
REFUSED_TRIES: Final = 16
"""A server that stops refuses at once and begins nothing. Each try of a request in a burst meets it again as often as
any other server: with one of two stopping, half of the time. The tries take about two seconds."""

_WAIT_S: Final = 0.004
_LONGEST_WAIT_S: Final = 0.25
"""Waits double from one refusal to the next, so that a burst does not come back at once and together."""

_log = logging.getLogger(__name__)


async def retried(ask: Callable[[], Awaitable[T]], request_id: str = "", *, unless: Callable[[], bool] = bool) -> T:
    """What `ask` gives; asked again if its server cannot be reached, breaks the connection or is stopping.

    No other failure is repeated: neither the refusal of a full queue nor an engine's own. What a server had begun, it
    ends when the connection breaks, so nothing is done twice.

    Args:
        request_id: for the log.
        unless: says, after a failure, that part of the answer has arrived already.

    Raises:
        TritonChatError: how the last try failed.
    """
    broken = refused = 0
    while True:
        try:
            return await ask()
        except ServerStoppingError:  # noqa: PERF203 - asking takes far longer
            refused += 1
            if unless() or refused == REFUSED_TRIES:
                raise
            _log.info("a server is stopping; retrying", extra={"request_id": request_id})
            await asyncio.sleep(_wait_s(refused))
        except ServerUnavailableError:
            broken += 1
            if unless() or broken == BROKEN_TRIES:
                raise
            _log.info("the connection broke before the first event; retrying", extra={"request_id": request_id})


def _wait_s(refused: int) -> float:
    """Between half of the wait and all of it."""
    return min(_WAIT_S * 2.0 ** (refused - 1), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
