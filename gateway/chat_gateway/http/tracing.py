"""OpenTelemetry: one server span per request, as a child of the caller's and a parent of Triton's.

Sources: OpenTelemetry's semantic conventions for HTTP server spans; W3C Trace Context.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

import triton_chat
from chat_gateway.http.exchange import Exchange
from chat_gateway.http.metrics import OTHER, method_of, route_of

_PROPAGATOR = TraceContextTextMapPropagator()

Attributes = dict[str, str | int]


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Sends spans to a collector.

    Args:
        endpoint: its base address, without `/v1/traces`.
    """
    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")


def tracer_provider(exporter: SpanExporter) -> TracerProvider:
    """Its own, not the process's. `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_TRACES_SAMPLER` hold."""
    ours = Resource.create({SERVICE_NAME: "triton-chat-gateway", SERVICE_VERSION: triton_chat.__version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def trace_headers() -> dict[str, str]:
    """`traceparent` and `tracestate` of the current span, for the call to Triton; empty without tracing."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


class Tracing:
    """Surrounds `Access`, whose record says how the request ended."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("chat_gateway", triton_chat.__version__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        with self._tracer.start_as_current_span(
            _method(scope),
            _PROPAGATOR.extract(headers),
            trace.SpanKind.SERVER,
            _asked(scope, headers),
            record_exception=False,  # its message may quote a prompt
            set_status_on_exception=False,
        ) as span:
            try:
                await self._app(scope, receive, send)
            finally:
                _finish(span, scope)


def _asked(scope: Scope, headers: Headers) -> Attributes:
    """What is known at the start. The query string is left out: it is the caller's own business."""
    attributes: Attributes = {
        "http.request.method": method_of(scope) if method_of(scope) != OTHER else "_OTHER",
        "url.scheme": scope["scheme"],
        "url.path": scope["path"],
        "network.protocol.version": scope["http_version"],
    }
    if method_of(scope) == OTHER:
        attributes["http.request.method_original"] = scope["method"]
    if server := scope.get("server"):
        attributes |= {"server.address": server[0], **({"server.port": server[1]} if server[1] else {})}
    if client := scope.get("client"):
        attributes |= {"client.address": client[0]}
    if agent := headers.get("user-agent"):
        attributes |= {"user_agent.original": agent}
    return attributes


def _finish(span: trace.Span, scope: Scope) -> None:
    exchange = Exchange.of(scope)
    route = route_of(scope)
    if route != OTHER:
        span.update_name(f"{_method(scope)} {route}")
        span.set_attribute("http.route", route)
    if exchange.status is not None:
        span.set_attribute("http.response.status_code", exchange.status)
    if exchange.outcome >= 500:
        span.set_attribute("error.type", str(exchange.outcome))
        span.set_status(trace.StatusCode.ERROR)


def _method(scope: Scope) -> str:
    """As it begins the name of a span."""
    return method_of(scope) if method_of(scope) != OTHER else "HTTP"
