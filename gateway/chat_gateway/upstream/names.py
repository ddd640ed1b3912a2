"""From the name of Triton's endpoint to the addresses of its servers."""

from __future__ import annotations

import asyncio
import os
import socket
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from triton_chat.channel import Target


async def addresses(target: Target) -> tuple[Target, ...]:
    """A target for each address that the name has now; the target itself where there is nothing to look up.

    Raises:
        OSError: the name has no address, or nobody can say.
    """
    # A proxy does the lookup itself, and knows the name. This machine has one Triton, whatever its addresses are.
    if _through_proxy(target.host) or target.host == "localhost":
        return (target,)
    found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(target.at(str(address[0])) for *_, address in found))


def _through_proxy(host: str) -> bool:
    """Whether gRPC would. Source: grpc, "HTTP Proxy" of its core documentation."""
    proxies = ("grpc_proxy", "https_proxy", "http_proxy")
    direct = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy") or ""  # noqa: SIM112 - gRPC's own
    return any(map(os.environ.get, proxies)) and not (
        _is_loopback(host) or proxy_bypass_environment(host, {"no": direct})
    )


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")
