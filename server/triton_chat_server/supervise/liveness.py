"""Asks tritonserver again and again whether it answers."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Sequence
from typing import Literal

from triton_chat_server.serve import flags

State = Literal["answers", "silent", "closed"]

_INTERVAL_S = 0.5
_TIMEOUT_S = 1.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compares only
_OFF = ("false", "0")


class Liveness:
    """A thread that asks its HTTP and, where that is busy, its metrics. Any answer will do, even a refusal by a key.

    Attributes:
        state: `closed` if nobody listens: it loads its models, or stops.
    """

    def __init__(self, doors: Sequence[tuple[str, int]]) -> None:
        self.state: State = "closed"
        self._doors = doors
        self._thread = threading.Thread(target=self._loop, args=(threading.Event(),), name="liveness", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, command: Sequence[str]) -> Liveness | None:
        """By the flags of its command; None where both doors are switched off."""
        doors = doors_of(command)
        return cls(doors) if doors else None

    def _loop(self, never: threading.Event) -> None:
        while True:
            self.state = state_of(self._doors)
            never.wait(_INTERVAL_S)


def doors_of(command: Sequence[str]) -> list[tuple[str, int]]:
    """Host and port of its HTTP and of its metrics, as far as they are switched on."""
    return [*_door(command, "http", 8000), *_door(command, "metrics", 8002)]


def _door(command: Sequence[str], name: str, port: int) -> list[tuple[str, int]]:
    if flags.last(f"allow-{name}", command, "true").lower() in _OFF:
        return []
    host = flags.last(f"{name}-address", command, flags.last("http-address", command, "0.0.0.0"))  # noqa: S104
    host = host.removeprefix("ipv6:")
    given = flags.last(f"{name}-port", command, str(port))
    return [(_EVERY_ADDRESS.get(host, host), int(given))] if given.isdecimal() else []


def state_of(doors: Sequence[tuple[str, int]]) -> State:
    """That of the first door. Where it is silent, a server that answers at another one is only busy."""
    first, *others = doors
    state = _ask(first)
    if state == "silent" and any(_ask(door) == "answers" for door in others):
        return "answers"
    return state


def _ask(door: tuple[str, int]) -> State:
    connection = http.client.HTTPConnection(*door, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
    except ConnectionRefusedError:
        return "closed"
    except (OSError, http.client.HTTPException):
        return "silent"
    finally:
        connection.close()
    return "answers"
