"""OpenTelemetry tracing, if an OTLP endpoint is set."""

from __future__ import annotations

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


def trace_headers() -> dict[str, str]:
    """`traceparent` (and `tracestate`) of the current span, for the call to Triton; empty without tracing."""
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers
