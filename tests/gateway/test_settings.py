from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from chat_gateway.settings import STANDARD_OTLP_ENDPOINT, GatewaySettings, unknown_variables, variable


def from_environment(monkeypatch: pytest.MonkeyPatch, **environment: str) -> GatewaySettings:
    for name, value in environment.items():
        monkeypatch.setenv(variable(name), value)
    return GatewaySettings()


def test_defaults_open_nothing() -> None:
    settings = GatewaySettings()
    assert settings.host == "127.0.0.1"
    assert settings.cors_origins == ()
    assert settings.otlp_endpoint is None


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = from_environment(
        monkeypatch,
        port="8080",
        aliases='{"gpt-4o-mini": "chat"}',
        api_keys=" one, two ,",
        api_keys_file="/run/keys",
        cors_origins="https://a.example,https://b.example",
    )
    assert settings.port == 8080
    assert settings.aliases == {"gpt-4o-mini": "chat"}
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.api_keys_file == Path("/run/keys")
    assert settings.cors_origins == ("https://a.example", "https://b.example")


def test_empty_means_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_environment(monkeypatch, port="", api_keys_file="", api_keys="") == GatewaySettings(port=9000)


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sesame" not in repr(from_environment(monkeypatch, api_keys="sesame"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", "http"),
        ("triton_url", "http://triton:8000"),
        ("retry_after", "0"),
        ("unknown_fields", "drop"),
    ],
)
def test_wrong_values_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(ValidationError) as raised:
        from_environment(monkeypatch, **{name: value})
    assert raised.value.errors()[0]["loc"] == (name,)


@pytest.mark.parametrize(
    ("given", "host"),
    [("[::1]", "::1"), (" :: ", "::"), ("0.0.0.0", "0.0.0.0"), ("gateway.lan", "gateway.lan")],
)
def test_hosts(monkeypatch: pytest.MonkeyPatch, given: str, host: str) -> None:
    assert from_environment(monkeypatch, host=given).host == host


@pytest.mark.parametrize("given", ["[::1]:9000", "[]", "127.0.0.1:9000"])
def test_a_host_is_no_address_with_a_port(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    with pytest.raises(ValidationError, match=r"such as 127\.0\.0\.1, ::1 or ::"):
        from_environment(monkeypatch, host=given)


def test_the_standard_name_of_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STANDARD_OTLP_ENDPOINT, "http://standard:4318")
    assert str(GatewaySettings().otlp_endpoint) == "http://standard:4318/"
    assert str(from_environment(monkeypatch, otlp_endpoint="http://own:4318").otlp_endpoint) == "http://own:4318/"
    assert str(GatewaySettings(otlp_endpoint="http://given:4318").otlp_endpoint) == "http://given:4318/"


def test_typing_errors_are_found() -> None:
    names = ["PATH", variable("port"), variable("prot"), variable("service_host"), variable("port_9000_tcp")]
    assert unknown_variables(names) == [variable("prot")]
