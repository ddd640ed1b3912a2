"""Free TCP ports, found together so that no two are the same."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack


def choose(host: str, ports: Sequence[int]) -> tuple[int, ...]:
    """Replaces each 0 by a free port. Another process may still take it before the server does; that is rare."""
    with ExitStack() as stack:
        return tuple(port or _free_port(stack, host) for port in ports)


def _free_port(stack: ExitStack, host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    listener.bind((host, 0))
    return int(listener.getsockname()[1])
