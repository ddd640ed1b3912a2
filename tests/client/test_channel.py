from __future__ import annotations

import pytest

from triton_chat.channel import channel_options, parse_url
from triton_chat.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("url", "address", "tls"),
    [
        ("localhost", "localhost:8001", False),
        ("localhost:9", "localhost:9", False),
        ("grpc://host:9/", "host:9", False),
        ("grpcs://host", "host:8001", True),
        ("[::1]:9", "[::1]:9", False),
        ("::1", "[::1]:8001", False),
        ("grpc://[::1]:9", "[::1]:9", False),
        ("grpcs://[2001:db8::7]/", "[2001:db8::7]:8001", True),
        ("fe80::1%eth0", "[fe80::1%eth0]:8001", False),
        (" 10.0.0.1:9 ", "10.0.0.1:9", False),
    ],
)
def test_addresses(url: str, address: str, tls: bool) -> None:
    target = parse_url(url)
    assert (target.address, target.tls) == (address, tls)


@pytest.mark.parametrize(
    "url",
    [
        *("", "host:", "ftp://host", "host:port", "host:0", "host:70000", "a b:1", "host:1/path"),
        *(
            "[::1",
            "::1]:9",
            "[::1]9",
            "[::1]:x",
            "[::1]:0",
            "[]:9",
            "[host]:9",
            "host:1:2",
            "[::g]:9",
            "2001:db8::1::2",
        ),
    ],
)
def test_what_is_no_address(url: str) -> None:
    if url == "host:":
        assert parse_url(url).address == "host:8001"
    else:
        with pytest.raises(InvalidRequestError):
            parse_url(url)


@pytest.mark.parametrize("url", ["http://localhost:8000", "https://localhost:8000"])
def test_http_gets_a_hint(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="speaks gRPC"):
        parse_url(url)


def test_a_local_server_is_not_asked_through_a_proxy() -> None:
    for host in ("localhost", "127.0.0.1", "::1", "[0:0:0:0:0:0:0:1]:9"):
        assert ("grpc.enable_http_proxy", 0) in channel_options(parse_url(host), 5)
    assert ("grpc.enable_http_proxy", 0) not in channel_options(parse_url("example.com"), 5)


def test_keepalive_stays_within_what_servers_accept() -> None:
    assert dict(channel_options(parse_url("localhost"), 5))["grpc.keepalive_time_ms"] >= 300_000


def test_one_address_of_a_name() -> None:
    one = parse_url("grpcs://triton:9").at("fd00::7")
    assert (one.address, one.host, one.tls, one.authority) == ("[fd00::7]:9", "triton", True, "triton:9")
    options = dict(channel_options(one, 5))
    assert options["grpc.default_authority"] == "triton:9"
    assert options["grpc.ssl_target_name_override"] == "triton"
    assert options["grpc.enable_http_proxy"] == 0
    assert options["grpc.max_reconnect_backoff_ms"] == 1000
