"""Asking again where a server went away before it had answered: another one answers."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from chat_gateway.upstream.server import Server
from chat_gateway.upstream.servers import PATIENCE_S, Servers
from triton_chat.errors import (
    EngineError,
    NotComputedError,
    ServerStoppingError,
    ServerUnavailableError,
    ServerUnreachedError,
)

T = TypeVar("T")

BROKEN_TRIES: Final = 2
"""A request may be what made its server go away, so it gets one more."""

_WAIT_S: Final = 0.004
_LONGEST_WAIT_S: Final = 0.25
"""Waits double from one refusal to the next, so that a burst does not come back at once and together."""

_log = logging.getLogger(__name__)


async def retried(
    servers: Servers,
    model: str,
    ask: Callable[[Server], Awaitable[T]],
    request_id: str = "",
    *,
    unless: Callable[[], bool] = bool,
    adapter: str | None = None,
) -> T:
    """What a server answers to `ask`.

    A server that is stopping or cannot be reached has begun nothing: others are tried, for as long as `PATIENCE_S`.
    After a broken connection, a server that does not answer any more, or a failed engine, one more is tried; after the
    last only where there is another server. No other failure is repeated: neither the refusal of a full queue nor what
    the model cannot compute. What a server had begun, it ends when the connection breaks, so nothing is done twice.

    Args:
        model: Triton's name of it.
        request_id: for the log.
        unless: says, after a failure, that part of the answer has arrived already.
        adapter: of the model, that the server must have.

    Raises:
        TritonChatError: how the last try failed.
    """
    failed: list[Server] = []
    num_refused = num_broken = 0
    patient_until = 0.0
    while True:
        server = await servers.one_for(model, failed, adapter)
        try:
            return await server.run(ask)
        except NotComputedError:
            raise
        except (ServerStoppingError, ServerUnreachedError):
            servers.failed(server, down=True)
            patient_until = patient_until or time.monotonic() + PATIENCE_S
            if unless() or time.monotonic() >= patient_until:
                raise
            num_refused += 1
            _log.info("a server takes nothing new; trying another", extra={"request_id": request_id})
        except (ServerUnavailableError, EngineError) as error:
            is_down = isinstance(error, ServerUnavailableError)
            servers.failed(server, down=is_down)
            num_broken += 1
            is_last = unless() or num_broken == BROKEN_TRIES
            if is_last or not (is_down or _another(servers, model, adapter, [*failed, server])):
                raise
            _log.info("a server failed before the first token; trying another", extra={"request_id": request_id})
        failed.append(server)
        await asyncio.sleep(_wait_s(num_refused))


def _another(servers: Servers, model: str, adapter: str | None, failed: list[Server]) -> bool:
    other = servers.choose(model, failed, adapter)
    return other is not None and other not in failed


def _wait_s(num_refused: int) -> float:
    """Between half of the wait and all of it."""
    return min(_WAIT_S * 2.0**num_refused, _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
