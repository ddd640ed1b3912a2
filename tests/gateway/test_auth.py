from __future__ import annotations

import hmac
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from chat_gateway.http.auth import Keys
from chat_gateway.settings import GatewaySettings
from tests.gateway.apps import app_for
from tests.gateway.fakes import FakeClient

CLOSED_ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/chat"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/nope"),
    ("GET", "/health/live/"),
]


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("# people\nfrom-file\n\n  schlüssel  \n", encoding="utf-8")
    return file


@pytest.fixture
def client(keys_file: Path) -> TestClient:
    return TestClient(app_for(FakeClient(), api_keys="one,two", api_keys_file=keys_file))


def status(client: TestClient, authorization: str | bytes | None, path: str = "/v1/models") -> int:
    return client.get(path, headers={} if authorization is None else {"Authorization": authorization}).status_code


def replace(file: Path, text: str) -> None:
    """As editors and Kubernetes do it: another file takes the name."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.mark.parametrize(("method", "path"), CLOSED_ROUTES)
def test_every_route_but_health_needs_a_key(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health_needs_none(client: TestClient, path: str) -> None:
    assert status(client, None, path) == 200


@pytest.mark.parametrize("key", ["one", "two", "from-file"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_good_keys(client: TestClient, scheme: str, key: str) -> None:
    assert status(client, f"{scheme} {key}") == 200


def test_a_key_may_be_of_any_script(client: TestClient) -> None:
    assert status(client, "Bearer schlüssel".encode()) == 200


BAD = ["", "Bearer", "Bearer ", "one", "Basic one", "Bearer onee", "Bearer on", "Bearer # people", "Bearer one two"]


@pytest.mark.parametrize("authorization", BAD)
def test_bad_keys(client: TestClient, authorization: str) -> None:
    assert status(client, authorization) == 401


def test_a_wrong_key_is_not_repeated(client: TestClient) -> None:
    response = client.get("/v1/models", headers={"Authorization": "Bearer almost-secret"})
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "almost-secret" not in response.text


def test_without_keys_nobody_is_asked() -> None:
    assert status(TestClient(app_for(FakeClient())), None) == 200


def test_the_file_is_read_again_when_it_changes(client: TestClient, keys_file: Path) -> None:
    replace(keys_file, "newer\n")
    assert status(client, "Bearer newer") == 200
    assert status(client, "Bearer from-file") == 401
    assert status(client, "Bearer one") == 200


def test_a_file_that_goes_leaves_its_keys(
    client: TestClient, keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys_file.unlink()
    assert [status(client, "Bearer from-file") for _ in range(2)] == [200, 200]
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    keys_file.write_text("back\n")
    assert status(client, "Bearer back") == 200
    assert status(client, "Bearer from-file") == 401


def test_a_file_that_becomes_unreadable_leaves_its_keys(client: TestClient, keys_file: Path) -> None:
    keys_file.write_bytes(b"\xff\xfe")
    assert status(client, "Bearer from-file") == 200


def test_an_empty_file_opens_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch()
    client = TestClient(app_for(FakeClient(), api_keys_file=file))
    assert [status(client, authorization) for authorization in (None, "Bearer", "Bearer x")] == [401, 401, 401]


def test_a_missing_file_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TRITON_CHAT_GATEWAY_API_KEYS_FILE"):
        app_for(FakeClient(), api_keys_file=tmp_path / "nope")


def test_a_file_is_read_only_when_it_changes(keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(GatewaySettings(api_keys_file=keys_file))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("the file was read"))
    assert keys.accept(b"from-file")


def test_comparison_takes_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever key is tried: every known one is compared, in digests of one length."""
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def noted(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    keys = Keys(GatewaySettings(api_keys=("short", "x" * 1000)))
    for key in (b"short", b"x" * 1000, b"", b"wrong"):
        keys.accept(key)
    assert compared == [(32, 32)] * 8
