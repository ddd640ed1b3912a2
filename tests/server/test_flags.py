from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from triton_chat_server.errors import CommandError
from triton_chat_server.serve import flags
from triton_chat_server.serve.flags import server_flags

MODELS = Path("/models")


def named(arguments: list[str]) -> dict[str, str]:
    return dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)


def test_our_own() -> None:
    found = named(server_flags(MODELS, gpu=True))
    assert found["model-repository"] == "/models"
    assert found["model-control-mode"] == "none"
    assert found["exit-timeout-secs"] == "35"
    assert "disable-auto-complete-config" in found
    assert "model-config-name" not in found


def test_on_a_cpu() -> None:
    found = named(server_flags(MODELS, gpu=False))
    assert (found["model-config-name"], found["allow-gpu-metrics"]) == ("cpu", "false")


@pytest.mark.parametrize(
    "given",
    [
        ["--exit-timeout-secs=90", "--metrics-interval-ms=5000", "--model-config-name=h100"],
        ["--exit-timeout-secs", "90", "--metrics-interval-ms", "5000", "--model-config-name", "h100"],
        ["--model-store=/elsewhere", "--model-control-mode=poll"],
    ],
)
def test_a_given_flag_replaces_ours_and_none_is_there_twice(given: list[str]) -> None:
    arguments = server_flags(MODELS, gpu=False, given=given)
    assert arguments[-len(given) :] == given
    own = arguments[: -len(given)]
    counted = Counter(name for argument in [*own, *given] for name in flags.names([argument]))
    assert set(counted.values()) == {1}


@pytest.mark.parametrize(
    ("address", "http", "grpc"),
    [("0.0.0.0", "0.0.0.0", "0.0.0.0"), ("::", "ipv6:::", "[::]"), ("fd00::2", "ipv6:fd00::2", "[fd00::2]")],
)
def test_addresses_in_tritonservers_spellings(address: str, http: str, grpc: str) -> None:
    found = named(server_flags(MODELS, gpu=True, address=address))
    assert (found["http-address"], found["metrics-address"], found["grpc-address"]) == (http, http, grpc)


def test_an_address_that_is_given_replaces_ours() -> None:
    found = named(server_flags(MODELS, gpu=True, address="::", given=["--http-address=127.0.0.1"]))
    assert (found["http-address"], found["grpc-address"]) == ("127.0.0.1", "[::]")


def test_what_repeats_may_repeat() -> None:
    given = ["--backend-config=python,a=1", "--backend-config=python,b=2"]
    assert server_flags(MODELS, gpu=True, given=given)[-2:] == given


@pytest.mark.parametrize(
    "given",
    [
        ["--model-repo=/x"],
        ["--model-control", "poll"],
        ["--http-restricted=trace:a=b"],
        ["--model-st=/x"],
        ["--http-add=::"],
    ],
)
def test_abbreviations_of_what_is_looked_at_are_refused(given: list[str]) -> None:
    with pytest.raises(CommandError, match="is an abbreviation; write the full flag, such as --"):
        flags.check_whole(given)


def test_whole_flags_are_fine() -> None:
    flags.check_whole(["--model-repository=/x", "--model-store", "m", "--log-verbose=1", "--http-port", "1", "--"])


@pytest.mark.parametrize("given", [["--cache-config=redis,password=hush"], ["--cache-config", "redis,PASSWORD=hush"]])
def test_a_log_has_no_password(given: list[str]) -> None:
    text = " ".join(flags.shown(given))
    assert "hush" not in text
    assert "redis," in text


class TestClosedApis:
    def closed(self, given: list[str], closed: tuple[str, ...] = flags.CLOSED) -> tuple[str, str]:
        arguments = server_flags(MODELS, gpu=True, given=given, closed=closed)
        found = named(arguments[: len(arguments) - len(given)])
        return (
            found.get("http-restricted-api", "").partition(":")[0],
            found.get("grpc-restricted-protocol", "").partition(":")[0],
        )

    def test_by_default(self) -> None:
        assert self.closed([]) == ("shared-memory,trace,logging",) * 2

    def test_an_api_with_a_key_of_the_operator_keeps_it(self) -> None:
        given = ["--http-restricted-api=trace,health:admin=mine"]
        assert self.closed(given) == ("shared-memory,logging", "shared-memory,trace,logging")
        given = ["--grpc-restricted-protocol", "shared-memory,trace,logging:admin=mine"]
        assert self.closed(given) == ("shared-memory,trace,logging", "")

    @pytest.mark.parametrize("mode", ["explicit", "poll"])
    @pytest.mark.parametrize("form", ["--model-control-mode={}", "--model-control-mode {}"])
    def test_loading_models_too_where_that_is_possible(self, mode: str, form: str) -> None:
        given = form.format(mode).split()
        assert flags.closed_apis(given) == (*flags.CLOSED, "model-repository")
        assert "model-repository" in self.closed(given, flags.closed_apis(given))[0]
        assert flags.closed_apis(["--model-control-mode=none"]) == flags.CLOSED

    def test_the_key_is_another_one_each_time(self) -> None:
        first, second = (named(server_flags(MODELS, gpu=True))["http-restricted-api"] for _ in range(2))
        assert first != second
        assert len(first.rpartition("=")[2]) == 32

    @pytest.mark.parametrize("given", [[], ["--http-restricted-api", "trace:a=mine"], ["--http-port=1"]])
    def test_a_log_does_not_have_it(self, given: list[str]) -> None:
        arguments = server_flags(MODELS, gpu=True, given=given)
        key = named(arguments)["grpc-restricted-protocol"].rpartition("=")[2]
        text = " ".join(flags.shown(arguments))
        assert key not in text
        assert "mine" not in text
        assert "--grpc-restricted-protocol=shared-memory,trace,logging:..." in text
        assert "--model-repository=/models" in text
