from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from chat_gateway.http.tracing import trace_headers
from tests.gateway.apps import app_for
from tests.gateway.fakes import FakeClient, fails
from triton_chat.errors import EngineError

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "the-secret-prompt"}]}
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=1"}


class Traced:
    """A gateway whose spans can be looked at after it has stopped."""

    def __init__(self, fake: FakeClient) -> None:
        self.exporter = InMemorySpanExporter()
        self.client = TestClient(app_for(fake, span_exporter=self.exporter))

    def spans(self) -> tuple[ReadableSpan, ...]:
        """Starts and stops the app, which sends what it still has."""
        kept: list[ReadableSpan] = []
        shutdown = self.exporter.shutdown
        self.exporter.shutdown = lambda: (kept.extend(self.exporter.get_finished_spans()), shutdown())[1]
        with self.client:
            pass
        return tuple(kept)

    def span(self) -> ReadableSpan:
        (span,) = self.spans()
        return span


@pytest.fixture
def traced(fake: FakeClient) -> Traced:
    return Traced(fake)


def test_a_server_span_by_the_conventions(traced: Traced) -> None:
    traced.client.get("/v1/models/chat?q=the-secret-query", headers={"User-Agent": "tests"})
    span = traced.span()
    assert span.name == "GET /v1/models/{model_id}"
    assert span.kind is trace.SpanKind.SERVER
    assert span.status.status_code is trace.StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/v1/models/{model_id}",
        "url.path": "/v1/models/chat",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "testserver",
        "server.port": 80,
        "client.address": "testclient",
        "user_agent.original": "tests",
    }
    assert span.resource.attributes["service.name"] == "triton-chat-gateway"


def test_the_callers_trace_goes_on_to_triton(traced: Traced, fake: FakeClient) -> None:
    traced.client.post("/v1/chat/completions", json=CHAT, headers=CALLER)
    traced.client.post("/tokenize", json={"model": "chat", "prompt": "hi"}, headers=CALLER)
    first, second = traced.spans()
    assert first.parent is not None
    assert trace.format_span_id(first.parent.span_id) == PARENT_ID
    for span, headers in ((first, fake.calls[0].headers), (second, fake.others[0][1]["headers"])):
        assert span.context is not None
        assert headers == {
            "traceparent": f"00-{TRACE_ID}-{trace.format_span_id(span.context.span_id)}-01",
            "tracestate": "vendor=1",
        }


@pytest.mark.parametrize("header", ["nonsense", "00-0-0-00", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_broken_trace_begins_anew(traced: Traced, header: str) -> None:
    traced.client.get("/version", headers={"traceparent": header})
    assert traced.span().parent is None


def test_what_the_caller_does_not_sample_is_not_recorded(traced: Traced, fake: FakeClient) -> None:
    traced.client.post("/v1/chat/completions", json=CHAT, headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
    assert traced.spans() == ()
    assert fake.calls[0].headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert fake.calls[0].headers["traceparent"].endswith("-00")


@pytest.mark.parametrize("stream", [False, True])
def test_failures_are_errors_and_quote_nothing(traced: Traced, fake: FakeClient, stream: bool) -> None:
    fake.script = fails(EngineError("the-secret-prompt"))
    traced.client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    span = traced.span()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "503"
    assert "secret" not in span.to_json()


def test_a_callers_mistake_is_no_error(traced: Traced) -> None:
    traced.client.get("/nope")
    span = traced.span()
    assert (span.name, span.status.status_code) == ("GET", trace.StatusCode.UNSET)
    assert (span.attributes or {})["http.response.status_code"] == 404


def test_unknown_methods(traced: Traced) -> None:
    traced.client.request("BREW", "/version")
    attributes = dict(traced.span().attributes or {})
    assert (attributes["http.request.method"], attributes["http.request.method_original"]) == ("_OTHER", "BREW")


def test_the_log_has_the_trace(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "chat_gateway.http.access")
    traced.client.get("/version", headers=CALLER)
    assert vars(caplog.records[0])["trace_id"] == TRACE_ID


def test_without_an_endpoint_nothing_is_traced(gateway: TestClient, fake: FakeClient) -> None:
    gateway.post("/v1/chat/completions", json=CHAT, headers=CALLER)
    assert fake.calls[0].headers == {}
    assert trace_headers() == {}


def test_the_operators_own_names(fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front-door")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    traced = Traced(fake)
    traced.client.get("/version")
    attributes = traced.span().resource.attributes
    assert (attributes["service.name"], attributes["deployment.environment.name"]) == ("front-door", "test")


class Collector(http.server.BaseHTTPRequestHandler):
    received: list[tuple[str, ExportTraceServiceRequest]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") is None:
            self.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, ExportTraceServiceRequest]]]]:
    received: list[tuple[str, ExportTraceServiceRequest]] = []
    handler = type("OneCollector", (Collector,), {"received": received})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


def test_spans_reach_a_collector_before_the_app_has_stopped(
    fake: FakeClient, collector: tuple[str, list[tuple[str, ExportTraceServiceRequest]]]
) -> None:
    url, received = collector
    with TestClient(app_for(fake, otlp_endpoint=url)) as client:
        client.get("/version")
    ((path, request),) = received
    assert path == "/v1/traces"
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "GET /version"
