"""The file in a target that says what was fetched into it, or what a fetch is about to put there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triton_chat_server.errors import CommandError
from triton_chat_server.fetch.files import safe

NAME = ".triton-chat-fetch.json"
_VERSION = 1


@dataclass(frozen=True)
class Kept:
    """A file in the target. Before it is there, its size and sum may be unknown; `etag` is the source's."""

    size: int | None = None
    sha256: str | None = None
    etag: str = ""


@dataclass(frozen=True)
class Marker:
    """`source` is what was asked for, `commit` what that was at the time."""

    source: dict[str, str]
    commit: str | None
    files: dict[str, Kept]
    complete: bool

    def is_of(self, identity: Mapping[str, str]) -> bool:
        """Whether the same was asked for. From which endpoint does not matter: a mirror holds the same thing."""
        return _without_endpoint(self.source) == _without_endpoint(identity)

    def holds(self, target: Path) -> bool:
        """Whether all files are there with their sizes: a quick look."""
        return self.complete and all(
            (path := target / name).is_file() and path.stat().st_size == kept.size for name, kept in self.files.items()
        )


def read(target: Path) -> Marker | None:
    """None where there is none, and for one that is damaged or of another version."""
    try:
        found: dict[str, Any] = json.loads((target / NAME).read_text("utf-8"))
        if found["version"] != _VERSION:
            return None
        files = {name: Kept(**kept) for name, kept in found["files"].items() if safe(name)}
        return Marker(dict(found["source"]), found["commit"], files, found["complete"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _without_endpoint(identity: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in identity.items() if name != "endpoint"}


def write(marker: Marker, target: Path) -> None:
    """At once or not at all, also when the machine stops. Raises CommandError where the target cannot be written."""
    fresh = target / f"{NAME}.new"
    try:
        with fresh.open("w", encoding="utf-8") as file:
            json.dump({"version": _VERSION, **asdict(marker)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target / NAME)
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror}") from error
