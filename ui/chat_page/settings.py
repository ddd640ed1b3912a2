"""What the page is told, from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

URL_VARIABLE = "TRITON_CHAT_UI_GATEWAY_URL"
KEY_VARIABLE = "TRITON_CHAT_UI_API_KEY"


@dataclass(frozen=True)
class PageSettings:
    """Where the gateway is. The key stays on the server: it is in no message and in no page."""

    gateway_url: str = "http://127.0.0.1:9000"
    api_key: str | None = field(default=None, repr=False)

    @property
    def base_url(self) -> str:
        """What the openai package calls `base_url`."""
        return self.gateway_url.rstrip("/").removesuffix("/v1") + "/v1"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> PageSettings:
        """Empty variables count as not set.

        Raises:
            ValueError: a sentence that names the variable; it shows no value.
        """
        url = environment.get(URL_VARIABLE, "").strip() or cls.gateway_url
        key = environment.get(KEY_VARIABLE, "").strip()
        if not _is_http_url(url):
            raise ValueError(f"{URL_VARIABLE} must be an address such as {cls.gateway_url}.")
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"{KEY_VARIABLE} must be printable ASCII, because it is sent in an HTTP header.")
        return cls(url, key or None)


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        return False
