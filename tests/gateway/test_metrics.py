from __future__ import annotations

import httpx2
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.testclient import TestClient

from chat_gateway.http.metrics import GENERATING
from tests.gateway.apps import app_for, served, wait_until
from tests.gateway.fakes import FakeClient, hangs
from triton_chat.errors import ServerUnavailableError

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
ROUTE = "/v1/chat/completions"
PREFIX = "triton_chat_gateway_"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: TestClient | httpx2.Client) -> Samples:
    families = parse_text(client.get("/metrics").text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((PREFIX + name, frozenset(labels.items())), 0.0)


def test_requests_by_route_method_and_status(gateway: TestClient) -> None:
    gateway.get("/v1/models/chat")
    gateway.get("/v1/models/nope")
    gateway.post(ROUTE, json={})
    gateway.get("/a/path/of/the/callers/own")
    gateway.request("BREW", "/v1/models")
    samples = scrape(gateway)
    for route, method, status in [
        ("/v1/models/{model_id}", "GET", "200"),
        ("/v1/models/{model_id}", "GET", "404"),
        (ROUTE, "POST", "400"),
        ("other", "GET", "404"),
        ("/v1/models", "other", "405"),
    ]:
        assert value(samples, "requests_total", route=route, method=method, status=status) == 1


def test_failures_are_counted_from_nought(gateway: TestClient) -> None:
    samples = scrape(gateway)
    for route in GENERATING:
        for status in ("200", "429", "499", "500", "503"):
            assert (
                PREFIX + "requests_total",
                frozenset({("route", route), ("method", "POST"), ("status", status)}),
            ) in samples
    assert set(GENERATING) <= set(gateway.get("/openapi.json").json()["paths"])


def test_labels_are_bounded(gateway: TestClient) -> None:
    for number in range(50):
        gateway.get(f"/{number}")
        gateway.get(f"/v1/models/{number}")
        gateway.request(f"M{number}", "/version")
    routes = {dict(labels).get("route") for _, labels in scrape(gateway)} - {None}
    assert routes == {"other", "/v1/models/{model_id}", "/version", *GENERATING}


def test_durations_and_bytes(gateway: TestClient) -> None:
    response = gateway.post(ROUTE, json=CHAT)
    samples = scrape(gateway)
    assert value(samples, "request_duration_seconds_count", route=ROUTE, method="POST") == 1
    assert 0 < value(samples, "request_duration_seconds_sum", route=ROUTE, method="POST") < 5
    assert value(samples, "response_bytes_total", route=ROUTE) == len(response.content)
    assert value(samples, "request_bytes_total", route=ROUTE) == len(response.request.content)
    assert value(samples, "time_to_first_chunk_seconds_count", route=ROUTE) == 0


def test_streams(fake: FakeClient) -> None:
    fake.script = hangs("one")
    with served(app_for(fake)) as url, httpx2.Client(base_url=url) as client:
        with client.stream("POST", ROUTE, json=CHAT | {"stream": True}) as response:
            chunks = response.iter_text()
            next(chunks)
            samples = scrape(client)
            assert value(samples, "open_streams", route=ROUTE) == 1
            assert value(samples, "open_requests") == 2
        wait_until(lambda: value(scrape(client), "open_streams", route=ROUTE) == 0)
        samples = scrape(client)
        assert value(samples, "open_requests") == 1
        assert value(samples, "requests_total", route=ROUTE, method="POST", status="499") == 1
        assert value(samples, "time_to_first_chunk_seconds_count", route=ROUTE) == 1


def test_the_servers(gateway: TestClient, fake: FakeClient) -> None:
    assert gateway.get("/health/ready").status_code == 200
    samples = scrape(gateway)
    assert [value(samples, "triton_servers", state=state) for state in ("up", "down")] == [1, 0]
    fake.failure = ServerUnavailableError("gone")
    wait_until(lambda: value(scrape(gateway), "triton_servers", state="down") == 1)
    assert value(scrape(gateway), "triton_servers", state="up") == 0
    assert gateway.get("/health/ready").status_code == 503


@pytest.mark.parametrize("accept", ["", "text/plain", "application/openmetrics-text; version=1.0.0"])
def test_both_formats(gateway: TestClient, accept: str) -> None:
    response = gateway.get("/metrics", headers={"Accept": accept})
    parse = parse_openmetrics if "openmetrics" in accept else parse_text
    assert response.headers["content-type"].startswith(accept.partition(";")[0] or "text/plain")
    families = {family.name for family in parse(response.text)}
    assert {PREFIX + "requests", PREFIX + "open_streams", PREFIX + "build_info", "process_cpu_seconds"} <= families


def test_every_app_has_its_own() -> None:
    one, two = (TestClient(app_for(FakeClient())) for _ in range(2))
    one.get("/version")
    assert value(scrape(one), "requests_total", route="/version", method="GET", status="200") == 1
    assert value(scrape(two), "requests_total", route="/version", method="GET", status="200") == 0
