from __future__ import annotations

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from tests.gateway.apps import app_for
from tests.gateway.fakes import FakeClient, fails

ORIGIN = "https://chat.example"
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}


def own_app() -> FastAPI:
    return app_for(FakeClient())


published = schemathesis.openapi.from_asgi("/openapi.json", own_app())


def test_the_published_schema_is_valid() -> None:
    published.validate()


def test_what_is_published(gateway: TestClient) -> None:
    paths = gateway.get("/openapi.json").json()["paths"]
    assert {path: sorted(operations) for path, operations in paths.items()} == {
        "/health": ["get"],
        "/health/live": ["get"],
        "/health/ready": ["get"],
        "/ping": ["get", "post"],
        "/metrics": ["get"],
        "/version": ["get"],
        "/v1/models": ["get"],
        "/v1/models/{model_id}": ["get"],
        "/v1/chat/completions": ["post"],
        "/v1/completions": ["post"],
        "/v1/embeddings": ["post"],
        "/tokenize": ["post"],
        "/detokenize": ["post"],
        "/tokenizer_info": ["get"],
    }
    for operations in paths.values():
        for operation in operations.values():
            assert {"4XX", "5XX"} <= set(operation["responses"])
            assert "422" not in operation["responses"]


def test_unknown_fields_are_published_as_they_are_taken() -> None:
    for unknown_fields, allowed in (("refuse", False), ("ignore", None)):
        document = app_for(FakeClient(), unknown_fields=unknown_fields).openapi()
        schemas = document["components"]["schemas"]
        bodies = (
            "ChatCompletionRequest",
            "CompletionRequest",
            "EmbeddingRequest",
            "TokenizeRequest",
            "DetokenizeRequest",
        )
        assert [schemas[name].get("additionalProperties") for name in bodies] == [allowed] * len(bodies)
        assert schemas["SpokenMessage"]["additionalProperties"] == {"type": "null"}


def test_keys_are_published_as_needed() -> None:
    paths = TestClient(app_for(FakeClient(), api_keys="one"), headers={"Authorization": "Bearer one"})
    document = paths.get("/openapi.json").json()["paths"]
    protected = {path for path, operations in document.items() if "security" in next(iter(operations.values()))}
    assert set(document) - protected == {"/health", "/health/live", "/health/ready", "/ping"}


@published.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_app_does_what_it_publishes(case: schemathesis.Case) -> None:
    """All but what no schema can say: that fields exclude each other, or that 1.0 is no token id here."""
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


def test_apps_share_nothing() -> None:
    one, two = own_app(), own_app()
    one.state.draining = True
    assert TestClient(one).get("/health/ready").status_code == 503
    assert TestClient(two).get("/health/ready").status_code == 200


def test_stopping_closes_the_connection(fake: FakeClient) -> None:
    with TestClient(app_for(fake)) as client:
        assert client.get("/health/ready").status_code == 200
        assert not fake.closed
    assert fake.closed


class TestCors:
    @pytest.fixture
    def client(self, fake: FakeClient) -> TestClient:
        return TestClient(app_for(fake, cors_origins=ORIGIN, api_keys="one"), headers={"Origin": ORIGIN})

    def test_off_by_default(self, gateway: TestClient) -> None:
        response = gateway.get("/v1/models", headers={"Origin": ORIGIN})
        assert not [name for name in response.headers if name.startswith("access-control")]
        preflight = gateway.options("/v1/models", headers={"Origin": ORIGIN, "Access-Control-Request-Method": "GET"})
        assert preflight.status_code == 405

    def test_preflight_needs_no_key(self, client: TestClient) -> None:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-stainless-os",
        }
        response = client.options("/v1/chat/completions", headers=asked)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "x-stainless-os" in response.headers["access-control-allow-headers"]

    @pytest.mark.parametrize(("key", "status"), [("one", 200), ("wrong", 401)])
    def test_a_browser_may_read_answers_and_errors(self, client: TestClient, key: str, status: int) -> None:
        response = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "X-Request-Id" in response.headers["access-control-expose-headers"]

    def test_a_browser_may_read_unforeseen_errors(self, client: TestClient, fake: FakeClient) -> None:
        fake.script = fails(RuntimeError())
        response = client.post("/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer one"})
        assert response.status_code == 500
        assert response.headers["access-control-allow-origin"] == ORIGIN

    def test_other_origins_get_nothing(self, client: TestClient) -> None:
        response = client.get("/health/live", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in response.headers
