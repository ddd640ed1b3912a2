"""The nouns of a fetch: files far away, what is known of their content, and what a source can do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event
from typing import BinaryIO, Literal, Protocol

from triton_chat_server.errors import CommandError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Digest:
    """What a source says about a file's content, in hex; `git` is the id of a git blob."""

    kind: Literal["sha256", "git", "md5"]
    value: str


@dataclass(frozen=True)
class RemoteFile:
    """A file of a source; `path` is relative to the checkpoint, `etag` the source's own name for this version of it."""

    path: str
    size: int
    digest: Digest | None = None
    etag: str = ""


@dataclass(frozen=True)
class Snapshot:
    """All files of a source at one moment; `commit` where it has such a thing."""

    commit: str | None
    files: Mapping[str, RemoteFile]


class Source(Protocol):
    """Where a checkpoint comes from. Its calls raise CommandError."""

    @property
    def identity(self) -> dict[str, str]:
        """What was asked for, as the marker keeps it."""
        ...

    def snapshot(self) -> Snapshot:
        """Looks at what is there now."""
        ...

    def detailed(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        """The files with a digest, where the source has one to tell."""
        ...

    def append(self, snapshot: Snapshot, file: RemoteFile, out: Sink) -> None:
        """Writes the content of a file from `out`'s position on. Raises BrokenOffError too."""
        ...


@dataclass(frozen=True)
class AdapterSource:
    """A source of a LoRA adapter. A folder that holds a checkpoint of the same source does not hold this."""

    source: Source

    @property
    def identity(self) -> dict[str, str]:
        """See `Source`."""
        return {**self.source.identity, "content": "adapter"}

    def snapshot(self) -> Snapshot:
        """See `Source`."""
        return self.source.snapshot()

    def detailed(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        """See `Source`."""
        return self.source.detailed(files)

    def append(self, snapshot: Snapshot, file: RemoteFile, out: Sink) -> None:
        """See `Source`."""
        self.source.append(snapshot, file, out)


class StoppedError(Exception):
    """Another download failed, so this one ends too. Says nothing: the other one's reason is told."""


class Sink:
    """Where a source writes a file: never more than its size, and nothing once `stop` is set."""

    def __init__(self, file: RemoteFile, out: BinaryIO, stop: Event | None = None) -> None:
        self._file = file
        self._out = out
        self._stop = stop

    def tell(self) -> int:
        """How many bytes are there."""
        return self._out.tell()

    def restart(self) -> None:
        """Forgets what is there."""
        self._out.seek(0)
        self._out.truncate()

    def write(self, chunk: bytes) -> None:
        """Raises CommandError where the source sends more than it said."""
        if self._stop is not None and self._stop.is_set():
            raise StoppedError
        if self.tell() + len(chunk) > self._file.size:
            self.restart()
            raise CommandError(f"{self._file.path} is longer than the {self._file.size} bytes that the source reported")
        self._out.write(chunk)

    def writelines(self, chunks: Iterable[bytes]) -> None:
        """See `write`."""
        for chunk in chunks:
            self.write(chunk)


def safe(path: str) -> bool:
    """Whether a name stays inside the folder that it is put in, and is not hidden, as this command's own files are."""
    parts = PurePosixPath(path)
    hidden = any(part.startswith(".") for part in parts.parts)  # `..` too
    return bool(path) and not parts.is_absolute() and not hidden and "\\" not in path and "\0" not in path


def sha256_checked(file: RemoteFile, target: Path) -> str:
    """SHA-256 of the file in `target`, whose size and content are as the source says; else it is removed.

    Raises CommandError.
    """
    path = target / file.path
    size = path.stat().st_size if path.is_file() else -1
    if size != file.size:
        path.unlink(missing_ok=True)
        raise CommandError(
            f"{file.path} has {max(size, 0)} bytes instead of {file.size}; run the command again to replace it"
        )
    sha256, other = hashlib.sha256(), _other_hash(file)
    for chunk in _chunks(path):
        sha256.update(chunk)
        if other is not None:
            other.update(chunk)
    if file.digest is not None and file.digest.value != (sha256 if other is None else other).hexdigest():
        path.unlink()
        raise CommandError(
            f"{file.path} is corrupted: its {file.digest.kind} checksum differs from the source's; run the command "
            "again to replace it"
        )
    return sha256.hexdigest()


def sha256_of(path: Path) -> str:
    """In hex."""
    found = hashlib.sha256()
    for chunk in _chunks(path):
        found.update(chunk)
    return found.hexdigest()


def _other_hash(file: RemoteFile) -> hashlib._Hash | None:
    if file.digest is None or file.digest.kind == "sha256":
        return None
    if file.digest.kind == "md5":
        return hashlib.md5(usedforsecurity=False)
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
