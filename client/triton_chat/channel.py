"""Where the server is and how to hold a gRPC connection to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from triton_chat.errors import InvalidRequestError

DEFAULT_URL = "localhost:8001"
GRPC_PORT = 8001
MAX_MESSAGE_BYTES = 2**31 - 1

ChannelOptions = list[tuple[str, int | str]]

_QUESTIONS = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelConfig",
    "RepositoryIndex",
)
"""Change nothing and wait in no queue, so a server that cannot answer them is followed by the next one."""

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService", "method": method} for method in _QUESTIONS],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
"""Source: grpc/grpc-proto, service_config.proto."""


@dataclass(frozen=True, slots=True)
class Target:
    """A gRPC address."""

    address: str
    host: str
    tls: bool
    authority: str | None = None
    """What the server is called, where `address` is a single one of those that its name has."""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def at(self, ip: str) -> Target:
        """The same server name at one of its addresses."""
        return replace(self, address=f"{_bracketed(ip)}:{self.port}", authority=self.authority or self.address)


def parse_url(url: str) -> Target:
    """Read `host`, `host:port`, `grpc://host:port` or, for TLS, `grpcs://host:port`; the default port is 8001.

    An IPv6 address with a port stands in brackets, as in `[::1]:8001`.

    Raises:
        InvalidRequestError: another scheme, a path, or a port that is not a number.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        scheme, rest = "grpc", scheme
    if scheme in {"http", "https"}:
        raise InvalidRequestError(
            f"{url} is an HTTP address, and this client speaks gRPC: leave the scheme out or write "
            f"grpc{'s' if scheme == 'https' else ''}://, and use Triton's gRPC port (8001 by default)"
        )
    if scheme not in {"grpc", "grpcs"}:
        raise InvalidRequestError(f"{scheme}:// is unknown: use grpc:// or, for TLS, grpcs://")
    host, port = _split_port(rest.rstrip("/"))
    if not _is_host(host) or not _is_port(port):
        raise InvalidRequestError(f"{url!r} is not a server address: write host:port, as in {DEFAULT_URL}")
    return Target(address=f"{_bracketed(host)}:{port or GRPC_PORT}", host=host, tls=scheme == "grpcs")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _split_port(address: str) -> tuple[str, str]:
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        well_formed = bracket and colon in ("", ":") and ":" in host
        return (host, port) if well_formed else ("", "")
    if address.count(":") > 1:
        return address, ""
    host, _, port = address.partition(":")
    return host, port


def _is_host(text: str) -> bool:
    if ":" in text:
        return _ip(text) is not None
    return bool(text) and not any(character in "/[]" or character.isspace() for character in text)


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_local(host: str) -> bool:
    address = _ip(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and 0 < int(text) < 65536)


def channel_options(target: Target, connect_s: float) -> ChannelOptions:
    """Channel arguments of gRPC core.

    Calls take turns over all addresses of the host that can be reached. It is looked up again, at most once a second,
    when a connection ends or cannot be made; gRPC's own minimum of 30 seconds would hide a new server for as long.

    A connection attempt is given up after `grpc.min_reconnect_backoff_ms`, and tried again at most
    `grpc.max_reconnect_backoff_ms` later, so that a long-lived client finds a restarted server quickly. Keepalive pings
    stay at the five minutes which servers accept by default: more often, and they close the connection with
    `too_many_pings`.

    A single address of a name belongs to somebody who watches all of them and knows which to use: it is asked without a
    proxy, by the server's name, and is found again within a second.
    """
    watched = target.authority is not None
    options: ChannelOptions = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 300_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.min_reconnect_backoff_ms", int(connect_s * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 250 if watched else 500),
        ("grpc.max_reconnect_backoff_ms", 1_000 if watched else 5_000),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ]
    if watched or _is_local(target.host):
        options.append(("grpc.enable_http_proxy", 0))
    if target.authority is not None:
        options.append(("grpc.default_authority", target.authority))
        options.append(("grpc.ssl_target_name_override", target.host))
    return options
