"""Free TCP ports, found together so that no two are the same."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def choose(host: str, ports: tuple[int, int, int]) -> tuple[int, int, int]:
    """Replaces each 0 by a free port. Another process may still take it before the server does; that is rare."""
    with ExitStack() as stack:
        http, grpc, metrics = (port or _free_port(stack, host) for port in ports)
    return http, grpc, metrics


def _free_port(stack: ExitStack, host: str) -> int:
    listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    listener.bind((host, 0))
    return int(listener.getsockname()[1])
