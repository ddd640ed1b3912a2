"""Asks tritonserver again and again whether it answers."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Sequence

from triton_chat_server.serve import flags

_INTERVAL_S = 1.0
_TIMEOUT_S = 2.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compares only


class Liveness:
    """A thread that asks the health route. Any answer will do: the route may be closed by a key."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.answers = False
        self._thread = threading.Thread(target=self._loop, args=(threading.Event(),), name="liveness", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, command: Sequence[str]) -> Liveness | None:
        """By the flags of its command; None where its HTTP is switched off."""
        if flags.last("allow-http", command, "true").lower() in ("false", "0"):
            return None
        host = flags.last("http-address", command, "0.0.0.0").removeprefix("ipv6:")  # noqa: S104 - compares only
        return cls(_EVERY_ADDRESS.get(host, host), int(flags.last("http-port", command, "8000")))

    def _loop(self, never: threading.Event) -> None:
        while True:
            self.answers = self._ask()
            never.wait(_INTERVAL_S)

    def _ask(self) -> bool:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True
