"""uvicorn with a stop that lets running answers finish, and with IPv4 and IPv6 behind the one address `::`."""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import socket
import sys
import time
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from chat_gateway.http.connections import Connections
from chat_gateway.http.metrics import Metrics
from chat_gateway.http.protocol import Protocol
from chat_gateway.settings import GatewaySettings

_END_S = 1
"""For what still runs when the drain time is over: for its callers to be told, and then for what is left to end."""
_TICKS_PER_S = 10
_OTHER_DESCRIPTORS = 200
"""Besides those of clients: Triton's connections, files, and the spare ones of each limit."""
_ANY_IPV6 = "::"
_CANNOT_LISTEN = 3
"""uvicorn's own exit code for it."""

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """At the first SIGTERM or Ctrl-C the app is told that it drains: not ready, and no new work.

    uvicorn's own stop begins when no request runs any more, or when the drain time is over; probes get an answer until
    then. A second signal ends the drain time. What still runs then is cancelled, which its callers are told, and those
    who do not listen lose their connections, before uvicorn gets to it. However it stops, the exit code is 0.
    """

    def __init__(self, app: FastAPI, settings: GatewaySettings) -> None:
        self._connections = Connections(settings, getattr(app.state, "metrics", None) or Metrics())
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                http=cast("Any", partial(Protocol, connections=self._connections)),
                ws="none",
                timeout_keep_alive=math.ceil(settings.idle_timeout),
                timeout_graceful_shutdown=_END_S,
            )
        )
        self._app = app
        self._drain_s = settings.drain_timeout
        self._max_connections = settings.max_connections
        self._deadline = math.inf

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it is told to stop. Exits with 3 if it cannot listen."""
        allow_descriptors(self._max_connections + _OTHER_DESCRIPTORS)
        super().run(sockets or self._both_families())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets:  # uvicorn takes it that whoever made them has said so
            self._log_started_message(sockets)

    def _both_families(self) -> list[socket.socket] | None:
        """For `::`, which asyncio would keep to IPv6; None for every other address, which uvicorn binds by itself."""
        if self.config.host != _ANY_IPV6:
            return None
        try:
            listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        except OSError:
            _log.warning("this machine has no IPv6: listening on IPv4 alone")
            self.config.host = "0.0.0.0"  # noqa: S104 - `::` asks for every address
            return None
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind((_ANY_IPV6, self.config.port))
        except OSError as error:
            listener.close()
            _log.error("cannot listen on port %d: %s", self.config.port, error.strerror)
            sys.exit(_CANNOT_LISTEN)
        return [listener]

    @property
    def draining(self) -> bool:
        return self._deadline < math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Only sets flags: it interrupts whatever is running."""
        self._deadline = time.monotonic() + (0 if self.draining else self._drain_s)
        self._app.state.draining = True

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_S == 0:
            self._connections.sweep()
        if self.draining:
            running = len(self.server_state.tasks)
            if running and counter % _TICKS_PER_S == 0:
                _log.info("requests are still running", extra={"requests": running})
            self.should_exit |= running == 0 or time.monotonic() >= self._deadline
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.draining = True
        await self._end_requests()
        await super().shutdown(sockets)

    async def _end_requests(self) -> None:
        """Cancelled, a request ends with an error for its caller, see `chat_gateway.http.stopping`."""
        running = tuple(self.server_state.tasks)
        if running:
            _log.warning("the drain time is over; ending what still runs", extra={"requests": len(running)})
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=_END_S)
        self._connections.abort_unfinished()
        if running:
            await asyncio.wait(running, timeout=_END_S)


def allow_descriptors(number: int) -> None:
    """Raises the soft limit of open files, which is often too low for the connections, as far as the hard one allows.

    Without a descriptor for a new connection a process can do no more than let it wait, probes too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= number:
        return
    allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # macOS has a limit that it does not tell
        allowed = soft
    if allowed < number:
        _log.warning("this process may have %d open files, fewer than the connections may need", allowed)
