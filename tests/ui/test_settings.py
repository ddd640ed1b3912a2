from __future__ import annotations

import pytest

from chat_page.settings import KEY_VARIABLE, URL_VARIABLE, PageSettings


@pytest.mark.parametrize("environment", [{}, {URL_VARIABLE: "", KEY_VARIABLE: " "}])
def test_the_defaults_are_those_of_make_serve(environment: dict[str, str]) -> None:
    settings = PageSettings.from_environment(environment)
    assert settings == PageSettings("http://127.0.0.1:9000", None)
    assert settings.base_url == "http://127.0.0.1:9000/v1"


@pytest.mark.parametrize("url", ["https://chat.example/", "https://chat.example/v1", "https://chat.example/v1/"])
def test_the_address_may_be_written_as_people_write_it(url: str) -> None:
    assert PageSettings.from_environment({URL_VARIABLE: url}).base_url == "https://chat.example/v1"


@pytest.mark.parametrize("url", ["chat.example", "ftp://chat.example", "http://", "http://host:port", "http://[::1"])
def test_an_address_that_is_none_is_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match=URL_VARIABLE):
        PageSettings.from_environment({URL_VARIABLE: url})


@pytest.mark.parametrize("key", ["schlüssel", "a\nb"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValueError, match=KEY_VARIABLE) as caught:
        PageSettings.from_environment({KEY_VARIABLE: key})
    assert key not in str(caught.value)


def test_the_key_is_not_in_the_representation() -> None:
    settings = PageSettings.from_environment({KEY_VARIABLE: "sk-secret"})
    assert settings.api_key == "sk-secret"
    assert "sk-secret" not in repr(settings)
