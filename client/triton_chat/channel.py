"""Where the server is and how to hold a gRPC connection to it."""

from __future__ import annotations

from dataclasses import dataclass

from triton_chat.errors import InvalidRequestError

DEFAULT_URL = "localhost:8001"
GRPC_PORT = 8001
MAX_MESSAGE_BYTES = 2**31 - 1

_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Target:
    """A gRPC address."""

    address: str
    host: str
    tls: bool


def parse_url(url: str) -> Target:
    """Read `host`, `host:port`, `grpc://host:port` or, for TLS, `grpcs://host:port`; the default port is 8001.

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
    if not host or "/" in host or any(character.isspace() for character in host) or not _is_port(port):
        raise InvalidRequestError(f"{url!r} is not a server address: write host:port, as in {DEFAULT_URL}")
    bracketed = f"[{host}]" if ":" in host else host
    return Target(address=f"{bracketed}:{port or GRPC_PORT}", host=host, tls=scheme == "grpcs")


def _split_port(address: str) -> tuple[str, str]:
    if address.startswith("["):
        host, _, port = address[1:].partition("]")
        return host, port.removeprefix(":")
    if address.count(":") > 1:
        return address, ""
    host, _, port = address.partition(":")
    return host, port


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and 0 < int(text) < 65536)


def channel_options(target: Target, connect_s: float) -> list[tuple[str, int]]:
    """Channel arguments of gRPC core.

    A connection attempt is given up after `grpc.min_reconnect_backoff_ms`, and tried again at most
    `grpc.max_reconnect_backoff_ms` later, so that a long-lived client finds a restarted server quickly. Keepalive pings
    stay at the five minutes which servers accept by default: more often, and they close the connection with
    `too_many_pings`.
    """
    options = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 300_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.min_reconnect_backoff_ms", int(connect_s * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if target.host in _LOCAL_HOSTS:
        options.append(("grpc.enable_http_proxy", 0))
    return options
