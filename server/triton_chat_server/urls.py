"""Addresses of servers, as a person types them."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit


def is_server(url: str, schemes: Collection[str] = ("http", "https")) -> bool:
    """Whether it names a scheme that is allowed and a host, a port or not, and no user: it appears in logs."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return False
    return parts.scheme in schemes and bool(parts.hostname) and parts.username is None
