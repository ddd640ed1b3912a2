"""What Prometheus is told, from a registry of the app's own.

Labels come from closed sets: route templates, known methods, statuses. `other` stands for what is in none of them.
"""

from __future__ import annotations

from itertools import product
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.types import Scope

import triton_chat
from chat_gateway.http.exchange import Exchange
from chat_gateway.upstream.servers import Servers

OTHER = "other"
Reason = Literal["slow_reader", "slow_head", "slow_body", "malformed", "too_many"]
"""Why the gateway closes a connection by itself."""
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
"""The routes whose failures are counted from the start."""

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_DURATION_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_FIRST_CHUNK_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80, 160)


def route_of(scope: Scope) -> str:
    """The template of the route that took the request, such as `/v1/models/{model_id}`."""
    return str(getattr(scope.get("route"), "path_format", OTHER))


def method_of(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else OTHER


class Metrics:
    """The families of one app; `triton_chat_gateway_` begins their names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "triton_chat_gateway_requests",
            "Requests by how they ended; 499: the client left before the answer was complete.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "triton_chat_gateway_request_duration_seconds",
            "From the arrival of the headers to the last byte of the answer.",
            ["route", "method"],
            buckets=_DURATION_S,
            registry=self.registry,
        )
        self._first_chunk = Histogram(
            "triton_chat_gateway_time_to_first_chunk_seconds",
            "From the arrival of the headers to the first chunk of a streamed answer.",
            ["route"],
            buckets=_FIRST_CHUNK_S,
            registry=self.registry,
        )
        self._open_requests = Gauge(
            "triton_chat_gateway_open_requests", "Requests being worked on, streams included.", registry=self.registry
        )
        self._open_streams = Gauge(
            "triton_chat_gateway_open_streams", "Streamed answers on their way.", ["route"], registry=self.registry
        )
        self._request_bytes = Counter(
            "triton_chat_gateway_request_bytes", "Bytes of request bodies.", ["route"], registry=self.registry
        )
        self._response_bytes = Counter(
            "triton_chat_gateway_response_bytes", "Bytes of response bodies.", ["route"], registry=self.registry
        )
        self._connections = Gauge(
            "triton_chat_gateway_open_connections",
            "Connections of clients, idle ones included.",
            registry=self.registry,
        )
        self._closed = Counter(
            "triton_chat_gateway_connections_closed",
            "Connections that the gateway closed, or would not serve, because of what the client did.",
            ["reason"],
            registry=self.registry,
        )
        self._servers = Gauge(
            "triton_chat_gateway_triton_servers",
            "Triton servers that the gateway knows of, by whether they answer and take requests.",
            ["state"],
            registry=self.registry,
        )
        # A counter that is born with its first increment hides it from rate(), so the usual ones are there at once.
        for route, status in product(GENERATING, ("200", "429", "499", "500", "503")):
            self._requests.labels(route, "POST", status)
        for reason in REASONS:
            self._closed.labels(reason)
        build = Gauge("triton_chat_gateway_build_info", "1, with the version.", ["version"], registry=self.registry)
        build.labels(triton_chat.__version__).set(1)

    def connections_are(self, number: int) -> None:
        self._connections.set(number)

    def connection_closed(self, reason: Reason) -> None:
        self._closed.labels(reason).inc()

    def watch(self, servers: Servers) -> None:
        """Tells of them whenever it is asked."""
        self._servers.labels("up").set_function(lambda: servers.num_up)
        self._servers.labels("down").set_function(lambda: servers.num_known - servers.num_up)

    def request_began(self) -> None:
        self._open_requests.inc()

    def stream_opened(self, scope: Scope) -> None:
        self._open_streams.labels(route_of(scope)).inc()

    def request_ended(self, scope: Scope, exchange: Exchange) -> None:
        route, method = route_of(scope), method_of(scope)
        self._open_requests.dec()
        self._requests.labels(route, method, str(exchange.outcome)).inc()
        self._duration.labels(route, method).observe(exchange.duration_s)
        self._request_bytes.labels(route).inc(exchange.request_bytes)
        self._response_bytes.labels(route).inc(exchange.response_bytes)
        if exchange.streams:
            self._open_streams.labels(route).dec()
        if exchange.first_chunk_s is not None:
            self._first_chunk.labels(route).observe(exchange.first_chunk_s)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All families in the format that a scraper asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
