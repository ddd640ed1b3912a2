"""Bearer keys, from the settings and from a file that is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chat_gateway.errors import ApiError
from chat_gateway.settings import GatewaySettings, variable

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
"""What needs no key."""

_Version = tuple[int, int, int]
_log = logging.getLogger(__name__)


class Keys:
    """Which keys are good. Only their digests are kept.

    Raises:
        ValueError: the file cannot be read.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._fixed = frozenset(_digest(key.get_secret_value().encode()) for key in settings.api_keys)
        self._file = settings.api_keys_file
        self._from_file: frozenset[bytes] = frozenset()
        self._version: _Version | None = None
        self.required = bool(self._fixed) or self._file is not None
        if self._file is not None:
            try:
                self._read(self._file)
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{variable('api_keys_file')} cannot be read: {error}") from error

    def accept(self, key: bytes) -> bool:
        """Takes as long for a wrong key as for a right one."""
        self._read_again()
        given = _digest(key)
        found = False
        for digest in self._fixed | self._from_file:
            found |= hmac.compare_digest(digest, given)
        return found

    def _read_again(self) -> None:
        """A file that cannot be read leaves the keys as they were: it is being replaced, or somebody is told."""
        if self._file is None:
            return
        try:
            if _version(self._file) != self._version:
                self._read(self._file)
                _log.info("the API keys were reloaded", extra={"keys": len(self._from_file)})
        except (OSError, UnicodeDecodeError) as error:
            if self._version is not None:
                _log.error("the API key file cannot be read; the previous keys remain valid: %s", type(error).__name__)
            self._version = None

    def _read(self, file: Path) -> None:
        version = _version(file)
        lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        self._from_file = frozenset(_digest(line.encode()) for line in lines if line and not line.startswith("#"))
        self._version = version


def _version(file: Path) -> _Version:
    status = file.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size


def _digest(key: bytes) -> bytes:
    """All digests have one length, so that a comparison does not tell that of a key."""
    return hashlib.sha256(key).digest()


class Auth:
    """Refuses requests without a good key, before anything else looks at them."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"] not in OPEN_PATHS:
            self._check(Headers(scope=scope).get("authorization", ""))
        await self._app(scope, receive, send)

    def _check(self, header: str) -> None:
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused(
                "the API key is missing: send it in the header Authorization, as `Bearer <key>`", "missing_api_key"
            )
        if not self._keys.accept(key.strip().encode("latin-1")):
            raise _refused("the API key is not valid", "invalid_api_key")


def _refused(sentence: str, code: str) -> ApiError:
    return ApiError(401, sentence, "authentication_error", code=code, headers={"WWW-Authenticate": "Bearer"})
