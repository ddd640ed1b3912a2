from __future__ import annotations

import socket

import pytest

from chat_gateway.upstream.names import addresses
from triton_chat.channel import channel_options, parse_url

PROXY = "http://proxy.test:3128"


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "address"),
    [("127.0.0.1:9", "127.0.0.1:9"), ("[::1]:9", "[::1]:9"), ("grpcs://127.0.0.1", "127.0.0.1:8001")],
)
async def test_an_address_is_itself(url: str, address: str) -> None:
    assert [found.address for found in await addresses(parse_url(url))] == [address]


async def test_this_machine_is_one_server_whatever_its_addresses() -> None:
    target = parse_url("localhost:9")
    assert await addresses(target) == (target,)


async def test_each_address_of_a_name_once_and_by_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
    answers = [(socket.AF_INET, kind, 0, "", (f"10.0.0.{last}", 9)) for last in (1, 2) for kind in (tcp, udp)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    found = await addresses(parse_url("grpcs://triton.test:9"))
    assert [target.address for target in found] == ["10.0.0.1:9", "10.0.0.2:9"]
    for target in found:
        options = dict(channel_options(target, 5))
        assert (options["grpc.default_authority"], options["grpc.ssl_target_name_override"]) == (
            "triton.test:9",
            "triton.test",
        )
        assert target.tls


async def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_knows(*_: object) -> None:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", nobody_knows)
    with pytest.raises(OSError, match="no such name"):
        await addresses(parse_url("triton.invalid"))


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
async def test_a_proxy_looks_the_name_up_itself(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, PROXY)
    target = parse_url("triton.invalid:9")
    assert await addresses(target) == (target,)
    assert "grpc.enable_http_proxy" not in dict(channel_options(target, 5))


@pytest.mark.parametrize("variable", ["no_grpc_proxy", "no_proxy"])
async def test_a_name_that_needs_no_proxy(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv(variable, "127.0.0.2")
    (found,) = await addresses(parse_url("127.0.0.2:9"))
    assert dict(channel_options(found, 5))["grpc.enable_http_proxy"] == 0
