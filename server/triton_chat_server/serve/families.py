"""Whether tritonserver's HTTP and metrics are to listen on IPv4 or on IPv6: it cannot do both."""

from __future__ import annotations

import socket
from collections.abc import Mapping

POD_IP_VARIABLE = "TRITON_CHAT_POD_IP"
"""A pod's own address, which probes, services and scrapers use; of a pod with two, the first."""

ANY_IPV4 = "0.0.0.0"  # noqa: S104 - in a container, whose ports are opened one by one
ANY_IPV6 = "::"

_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Of the networks for documentation; nothing is sent there."""


def wildcard(environment: Mapping[str, str]) -> str:
    """The family of the pod's address; without one, IPv6 only where this machine has nothing else."""
    if pod_ip := environment.get(POD_IP_VARIABLE):
        return ANY_IPV6 if ":" in pod_ip else ANY_IPV4
    return ANY_IPV6 if _has_route(socket.AF_INET6) and not _has_route(socket.AF_INET) else ANY_IPV4


def loopback(environment: Mapping[str, str]) -> str:
    """Where something on the same machine finds it, as it stands in a URL."""
    return "[::1]" if wildcard(environment) == ANY_IPV6 else "127.0.0.1"


def _has_route(family: socket.AddressFamily) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_ELSEWHERE[family], 9))
    except OSError:
        return False
    return True
