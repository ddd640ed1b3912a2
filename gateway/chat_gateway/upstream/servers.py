"""All servers behind the name of Triton's endpoint, and which of them takes a request.

Each has a connection of its own. The name is looked up every two seconds, and at once when a server fails; each server
is looked at every second. Both go on in the background from the first request on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Final

from chat_gateway.upstream.server import Server, ended, names
from chat_gateway.upstream.waits import within
from triton_chat.channel import Target
from triton_chat.client import AsyncChatClient
from triton_chat.errors import ServerUnavailableError
from triton_chat.types import ModelInfo

PATIENCE_S: Final = 6.0
"""How long a request waits where no server is ready any more. A name may be that late to tell of a new server. A server
that does not answer is noticed after three seconds, so its callers are told within ten."""
_LOOKUP_S: Final = 2.0
_LOOKUP_SOON_S: Final = 0.25
"""Between two lookups at the least."""

_log = logging.getLogger(__name__)


class Servers:
    """Belongs to one event loop."""

    def __init__(
        self,
        lookup: Callable[[], Awaitable[Sequence[Target]]],
        connect: Callable[[Target], AsyncChatClient],
        max_queue_s: float = 0.0,
    ) -> None:
        """Connects to nothing yet.

        Args:
            lookup: where the servers are now; raises OSError where that cannot be told.
            connect: a client of one of them.
            max_queue_s: see `excess_s`; 0: no limit.
        """
        self._max_queue_s = max_queue_s
        self._lookup = lookup
        self._connect = connect
        self._servers: dict[str, Server] = {}
        self._looking_up: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._soon: asyncio.Event | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._served: dict[tuple[str, str | None], tuple[ModelInfo, float]] = {}
        """Models that were ready, each alone and with its adapters, and when they last were."""
        self._up_at = 0.0

    @property
    def num_up(self) -> int:
        """Servers that answer."""
        return sum(server.up for server in self._servers.values())

    @property
    def num_known(self) -> int:
        """Servers that the name has, or had and that still work."""
        return len(self._servers)

    def recent(self, model: str) -> ModelInfo | None:
        """A model that some server has ready, or had until so recently that a request may wait for another."""
        info, at = self._served.get((model, None), (None, 0.0))
        return info if time.monotonic() - at < PATIENCE_S else None

    def recent_base(self, adapter: str) -> str | None:
        """The model that an adapter is of, as `recent` goes. A model of Triton of the same name comes first."""
        if any(adapter in server.models for server in self._servers.values()):
            return None
        since = time.monotonic() - PATIENCE_S
        bases = (model for (model, name), (_, at) in self._served.items() if name == adapter and at > since)
        return min(bases, default=None)

    def serves(self, model: str, adapter: str | None = None) -> bool:
        """Whether some server has it ready now."""
        return any(server.serves(model, adapter) for server in self._servers.values())

    async def models(self) -> Mapping[str, ModelInfo]:
        """The models of all servers by name; one is ready if it is ready anywhere, and has the adapters of all.

        Raises:
            ServerUnavailableError: no server answers.
        """
        await self._looked()
        up = [server for server in self._servers.values() if server.up]
        if not up:
            raise ServerUnavailableError("no server is ready")
        found: dict[str, ModelInfo] = {}
        for model in sorted((model for server in up for model in server.models.values()), key=attrgetter("ready")):
            earlier = found[model.name].adapters if model.name in found else ()
            adapters = {adapter.name: adapter for adapter in (*earlier, *model.adapters)}
            found[model.name] = replace(model, adapters=tuple(adapters.values()))
        return found

    async def one_for(self, model: str, failed: Collection[Server] = (), adapter: str | None = None) -> Server:
        """The server for a request, waiting for one if one was ready until recently.

        Args:
            failed: those that have failed it already; taken only if there is no other.
            adapter: that the server must have, too.

        Raises:
            ServerUnavailableError: none is ready.
        """
        await self._looked()
        while (server := self.choose(model, failed, adapter)) is None:
            left_s = self._last_served_at(model, adapter) + PATIENCE_S - time.monotonic()
            if left_s <= 0:
                raise ServerUnavailableError("no server is ready")
            await self._change(left_s)
        return server

    def choose(self, model: str, failed: Collection[Server] = (), adapter: str | None = None) -> Server | None:
        """Of the servers that have the model ready the one with the fewest requests, the others in turn.

        A model that no server lists is for any of them to refuse.
        """
        up = [server for server in self._servers.values() if server.up]
        serving = [server for server in up if server.serves(model, adapter)]
        if not serving and not any(model in server.models for server in up):
            serving = up
        return min(serving, key=lambda server: self._rank(server, failed), default=None)

    def excess_s(self, model: str, adapter: str | None = None) -> float:
        """By how much a new request would wait too long, wherever it went; 0 if it may come.

        A model and its adapters wait in one queue.

        Where no server is ready there is no queue: the request waits for a server, see `one_for`.
        """
        serving = [server for server in self._servers.values() if server.serves(model, adapter)]
        return min((server.backlogs.excess_s(model) for server in serving), default=0.0)

    def _last_served_at(self, model: str, adapter: str | None) -> float:
        if (model, adapter) in self._served:
            return self._served[model, adapter][1]
        return 0.0 if any(model in server.models for server in self._servers.values()) else self._up_at

    def _rank(self, server: Server, failed: Collection[Server]) -> tuple[object, ...]:
        return (server in failed, not server.listed, server.left_alone, server.outstanding, server.used_at)

    def failed(self, server: Server, *, down: bool) -> None:
        """A request has failed there; see `Server.failed`. Perhaps the name knows others by now."""
        server.failed(down=down)
        if self._soon is not None:
            self._soon.set()

    async def close(self) -> None:
        """What is still running is cancelled. Whoever asks later begins anew."""
        await ended(self._following, self._looking_up)
        servers, self._servers = list(self._servers.values()), {}
        await asyncio.gather(*(server.close() for server in servers))

    async def _looked(self) -> None:
        """Returns when it is known of one server that it is up, or of all that none is."""
        self._follow()
        if not self._servers:
            await asyncio.shield(self._look_up())
        while not any(server.up and server.fresh for server in self._servers.values()):
            looks = [server.look() for server in self._servers.values() if not server.fresh]
            if not looks:
                return
            done, _ = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
            for look in done:
                look.result()
            for server in self._servers.values():
                self._noted(server)

    def _follow(self) -> None:
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow_name())
        for server in self._servers.values():
            server.watch(self._noted)

    async def _follow_name(self) -> None:
        while True:
            self._soon = asyncio.Event()
            await asyncio.shield(self._look_up())
            await asyncio.sleep(_LOOKUP_SOON_S)
            await within(_LOOKUP_S - _LOOKUP_SOON_S, self._soon.wait())

    def _look_up(self) -> asyncio.Task[None]:
        """One at a time, which all who ask wait for. It never fails: what is known stays where nobody can tell."""
        if self._looking_up is None or self._looking_up.done():
            self._looking_up = asyncio.create_task(self._ask_name())
        return self._looking_up

    async def _ask_name(self) -> None:
        try:
            targets = {target.address: target for target in await self._lookup()}
        except (OSError, UnicodeError):
            _log.warning("the name of Triton's endpoint cannot be looked up")
            return
        for address in targets.keys() - self._servers.keys():
            self._servers[address] = Server(self._connect(targets[address]), self._max_queue_s)
            self._servers[address].watch(self._noted)
        for address, server in self._servers.items():
            server.listed = address in targets
        await self._forget()

    async def _forget(self) -> None:
        """Those whose address is gone, when their last answer has ended, and as long as there are others."""
        if any(server.listed and server.up for server in self._servers.values()):
            gone = [a for a, server in self._servers.items() if not (server.listed or server.outstanding)]
            await asyncio.gather(*(self._servers.pop(address).close() for address in gone))

    def _noted(self, server: Server) -> None:
        now = time.monotonic()
        if server.up:
            self._up_at = now
        for model in server.models.values():
            if server.serves(model.name):
                for adapter in (None, *names(model)):
                    self._served[model.name, adapter] = (model, now)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def _change(self, timeout_s: float) -> None:
        """Returns when there is news of a server."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await asyncio.wait((waiting,), timeout=timeout_s)
        finally:
            self._waiting.discard(waiting)
