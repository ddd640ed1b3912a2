"""A hub on loopback: the few answers of the real one that a download needs, and its failures.

Shapes and headers as huggingface_hub reads them: `/api/models/{id}/revision/{revision}?blobs=true`, `/api/models/{id}/
tree/{commit}`, and `/{id}/resolve/{commit}/{path}` with ranges. Large files are LFS objects, known by their SHA-256;
small ones are git blobs.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_LFS = (".safetensors", ".bin")
_CHUNK = 16 * 1024


@dataclass
class FakeRepository:
    """Commits and the branches that point at them; with a `token`, gated."""

    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Moves the branch to a new commit. Returns its id."""
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass(frozen=True)
class Download:
    """A GET of a file, and from which byte."""

    path: str
    start: int


class FakeHub:
    """Serves inside `with`.

    Attributes:
        repositories: by id.
        corrupted: paths whose content comes with one bit wrong.
        broken_off: path to a number of bytes; the next GET of it ends there.
        held: paths whose GETs stop before the last bytes until `release` is set; `halfway` is set then.
        rangeless: paths that are always sent from the beginning.
        sizeless: paths whose size is not told.
        busy: how many of the next requests are answered with 503.
        page: answers every GET instead, with status 200, as a proxy's page does.
        downloads: what was asked for so far; noted before the first byte is sent.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, FakeRepository] = {}
        self.corrupted: set[str] = set()
        self.broken_off: dict[str, int] = {}
        self.rangeless: set[str] = set()
        self.held: set[str] = set()
        self.halfway = threading.Event()
        self.release = threading.Event()
        self.sizeless: set[str] = set()
        self.busy = 0
        self.page: bytes | None = None
        self.downloads: list[Download] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def repository(self, name: str = "org/tiny") -> FakeRepository:
        return self.repositories.setdefault(name, FakeRepository())

    def fetched(self, path: str) -> list[Download]:
        return [download for download in self.downloads if download.path == path]

    @contextmanager
    def serving(self) -> Iterator[FakeHub]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.release.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        if self.hub.page is None:
            self._answer()
        else:
            self._body(self.hub.page, "text/html")

    def _sibling(self, path: str, data: bytes) -> dict[str, object]:
        entry = _sibling(path, data)
        return {key: value for key, value in entry.items() if key != "size" or path not in self.hub.sizeless}

    def _answer(self) -> None:
        if self.hub.busy:
            self.hub.busy -= 1
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            name, what, revision = "/".join(parts[2:4]), parts[4], parts[5]
        elif parts[2:3] == ["resolve"]:
            name, what, revision = "/".join(parts[:2]), parts[2], parts[3]
        else:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
        elif repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self._refuse(HTTPStatus.UNAUTHORIZED, "GatedRepo")
        elif (commit := repository.find(revision)) is None:
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        elif what == "revision":
            files = [self._sibling(path, data) for path, data in repository.commits[commit].items()]
            self._json({"id": name, "sha": commit, "siblings": files})
        elif what == "tree":
            self._json([_entry(path, data) for path, data in repository.commits[commit].items()])
        else:
            self._file(commit, "/".join(parts[4:]), repository.commits[commit])

    def _file(self, commit: str, path: str, files: Mapping[str, bytes]) -> None:
        if path not in files:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
            return
        data = files[path]
        ranged = self.headers.get("Range") if path not in self.hub.rangeless else None
        start = _start(ranged)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if ranged else HTTPStatus.OK)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_etag(path, data)}"')
        if path.endswith(_LFS):
            self.send_header("X-Linked-Etag", f'"{_etag(path, data)}"')
            self.send_header("X-Linked-Size", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self._send(path, data, start)

    def _send(self, path: str, data: bytes, start: int) -> None:
        if path in self.hub.corrupted:
            data = bytes([data[0] ^ 1]) + data[1:]
        self.hub.downloads.append(Download(path, start))
        end = self.hub.broken_off.pop(path, len(data))
        sent = start
        while sent < end:
            if path in self.hub.held and sent >= end - 2 * _CHUNK:
                self.hub.halfway.set()
                self.hub.release.wait()
            try:
                self.wfile.write(data[sent : min(sent + _CHUNK, end)])
            except OSError:  # the client was killed
                break
            sent = min(sent + _CHUNK, end)
        if end < len(data):
            self.close_connection = True

    def _json(self, value: object) -> None:
        self._body(json.dumps(value).encode(), "application/json")

    def _body(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, code: str | None = None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def git_id(data: bytes) -> str:
    """The id of a git blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _etag(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(_LFS) else git_id(data)


def _sibling(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": git_id(data)}
    if path.endswith(_LFS):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
    if path.endswith(_LFS):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _start(range_header: str | None) -> int:
    return int(range_header.removeprefix("bytes=").partition("-")[0]) if range_header else 0
