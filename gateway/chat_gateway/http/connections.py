"""How many connections there may be, and how long each may take for what its client has to do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any, Final, Literal, Protocol

from chat_gateway.errors import ApiError, unavailable
from chat_gateway.http.auth import OPEN_PATHS
from chat_gateway.http.metrics import Metrics, Reason
from chat_gateway.settings import GatewaySettings

Stage = Literal["head", "body", "idle"]
"""What a connection waits for: the rest of a head, the rest of a body, or the next request."""

SPARE: Final = 10
"""Connections beyond a limit that are still heard, so that probes get an answer and the others a refusal."""

_NEW_S: Final = 1.0
"""For so long a connection without a request may be about to send one."""

_log = logging.getLogger(__name__)


class Transport:
    """A transport that knows since when nothing of what was written has been taken."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written = 0
        self._taken = -1
        self._stuck_since = 0.0

    def write(self, content: bytes) -> None:
        self._written += len(content)
        self._transport.write(content)

    def stuck_s(self, now: float) -> float:
        """How long the client has read nothing, as seen from one call to the next."""
        unread = self._transport.get_write_buffer_size()
        taken = self._written - unread
        if not unread or taken > self._taken:
            self._taken, self._stuck_since = taken, now
        return now - self._stuck_since

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(Protocol):
    """What is known of a connection. Times are on the clock of `time.monotonic`."""

    stage: Stage
    since: float
    """When the stage began, or when the last response ended."""

    @property
    def address(self) -> str: ...

    @property
    def request_id(self) -> str | None:
        """Of the last request."""
        ...

    @property
    def serving(self) -> bool:
        """A request has arrived whose response is not complete."""
        ...

    @property
    def transport(self) -> Any:
        """A `Transport`."""
        ...

    def give_up(self, error: ApiError | None = None) -> None:
        """Close the connection, with an answer if one can still be given."""
        ...


class Connections:
    """All that are open.

    Beyond a limit, the connection that has been without a request for longest makes room, if for long. Else the new one
    is heard, and gets a refusal for anything except health if the others all have requests; so there may be `SPARE`
    more than the limit.
    """

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._all: set[Connection] = set()
        self._of_address: defaultdict[str, set[Connection]] = defaultdict(set)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._all))

    def add(self, connection: Connection) -> None:
        self._all.add(connection)
        self._of_address[connection.address].add(connection)
        self._metrics.connections_are(len(self._all))
        for group, limit in self._limited(connection):
            self._make_room(group, limit, connection)

    def remove(self, connection: Connection) -> None:
        self._all.discard(connection)
        group = self._of_address[connection.address]
        group.discard(connection)
        if not group:
            del self._of_address[connection.address]
        self._metrics.connections_are(len(self._all))

    def refusal(self, connection: Connection, path: str) -> ApiError | None:
        """Why the request that has just arrived there is not served."""
        for group, limit in self._limited(connection):
            others = sum(_busy(other) for other in group if other is not connection)
            if others >= limit and path not in OPEN_PATHS:
                self.note("too_many", connection)
                return self._too_many(group)
        return None

    def sweep(self) -> None:
        """Closes what has taken too long."""
        now = time.monotonic()
        for connection in self:
            if connection.transport.stuck_s(now) >= self._settings.slow_reader_seconds:
                self.note("slow_reader", connection)
                connection.transport.abort()
            elif not connection.serving and not connection.transport.is_closing():
                self._check_stage(connection, now - connection.since)

    def abort_unfinished(self) -> None:
        """Closes those whose clients have not taken a whole response, for a stop that cannot wait for them."""
        for connection in self:
            if _busy(connection):
                connection.transport.abort()

    def note(self, reason: Reason, connection: Connection) -> None:
        """For the metrics and the log; what strangers can bring about at will is not worth a line of its own."""
        self._metrics.connection_closed(reason)
        level = logging.INFO if reason == "slow_reader" else logging.DEBUG
        fields = {"reason": reason, "client": connection.address}
        if reason == "slow_reader" and connection.request_id:
            fields["request_id"] = connection.request_id
        _log.log(level, "closing a connection", extra=fields)

    def _check_stage(self, connection: Connection, took_s: float) -> None:
        settings = self._settings
        match connection.stage:
            case "head" if took_s >= settings.head_timeout:
                self.note("slow_head", connection)
                sentence = f"the head of the request did not arrive within {settings.head_timeout:g} seconds"
                connection.give_up(ApiError(408, sentence, code="request_timeout"))
            case "body" if took_s >= settings.body_timeout:  # of a request that has its answer already
                self.note("slow_body", connection)
                connection.give_up()
            case "idle" if took_s >= settings.idle_timeout:
                connection.give_up()

    def _limited(self, connection: Connection) -> list[tuple[Collection[Connection], int]]:
        """The groups of a connection that are larger than they may be."""
        groups = (
            (self._all, self._settings.max_connections),
            (self._of_address[connection.address], self._settings.max_connections_per_address),
        )
        return [(group, limit) for group, limit in groups if 0 < limit < len(group)]

    def _make_room(self, group: Collection[Connection], limit: int, new: Connection) -> None:
        full = len(group) > limit + SPARE
        without = [other for other in group if not _busy(other) and other is not new]
        leaving = min(without, key=lambda other: other.since, default=new)
        if not full and time.monotonic() - leaving.since < _NEW_S:
            return
        self.note("too_many", leaving)
        leaving.transport.abort()

    def _too_many(self, group: Collection[Connection]) -> ApiError:
        if group is self._all:
            error = unavailable("the gateway has too many connections; try again later", self._settings.retry_after)
        else:
            sentence = (
                f"there are too many connections from this address; at most "
                f"{self._settings.max_connections_per_address} are allowed"
            )
            error = ApiError(
                429, sentence, "rate_limit_error", code="too_many_connections", retry_after=self._settings.retry_after
            )
        error.headers["Connection"] = "close"
        return error


def _busy(connection: Connection) -> bool:
    """A request is being answered there, or the answer is not yet taken."""
    return connection.serving or bool(connection.transport.get_write_buffer_size())
