"""Checkpoints on the hub, through huggingface_hub."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from triton_chat_server.errors import CommandError
from triton_chat_server.fetch.files import Digest, RemoteFile, Sink, Snapshot
from triton_chat_server.fetch.parts import CHUNK, BrokenOffError
from triton_chat_server.urls import is_server

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported

import httpx2
import huggingface_hub
from huggingface_hub import constants, errors

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

log = logging.getLogger("fetch")

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - its name
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 30.0
_ATTEMPTS = 5
_PASSING = (429, 500, 502, 503, 504)
T = TypeVar("T")


class HubSource:
    """`revision` is a commit, a tag or a branch, looked up once. Raises CommandError for an endpoint that is none."""

    def __init__(self, repo_id: str, revision: str, endpoint: str | None = None) -> None:
        self._id = repo_id
        self._revision = revision
        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        if not is_server(self._endpoint):
            raise CommandError(
                "HF_ENDPOINT or --endpoint must be http://host or https://host, without user or password"
            )
        # False: not the token that somebody has stored on this machine.
        self._token: str | bool = os.environ.get(TOKEN_VARIABLE) or False

    @property
    def identity(self) -> dict[str, str]:
        """See `Source`."""
        return {"kind": "hub", "endpoint": self._endpoint, "id": self._id, "revision": self._revision}

    def snapshot(self) -> Snapshot:
        """See `Source`."""
        api = huggingface_hub.HfApi(endpoint=self._endpoint, token=self._token)
        with self._explained():
            try:
                info = _patiently(
                    lambda: api.model_info(self._id, revision=self._revision, files_metadata=True, timeout=_TIMEOUT_S)
                )
            except errors.HFValidationError:
                raise
            except (ValueError, LookupError, TypeError, AttributeError) as error:  # the library's, for another JSON too
                raise CommandError(f"{self._endpoint} answers, but not like a hub: is there a proxy?") from error
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise CommandError(f"{self._endpoint} reports no commit for {self._id}")
        return Snapshot(info.sha, {file.rfilename: _remote(file) for file in info.siblings or ()})

    def detailed(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        """See `Source`. They have a digest already."""
        return tuple(files)

    def append(self, snapshot: Snapshot, file: RemoteFile, out: Sink) -> None:
        """See `Source`."""
        url = huggingface_hub.hf_hub_url(self._id, file.path, revision=snapshot.commit, endpoint=self._endpoint)
        # Compressed on the way, a range would be one of the compressed bytes.
        headers = {"Range": f"bytes={out.tell()}-", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"  # not passed on to another host
        with self._explained():
            try:
                with huggingface_hub.get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as answer:
                    huggingface_hub.hf_raise_for_status(answer)
                    if answer.status_code != HTTPStatus.PARTIAL_CONTENT:  # all of it, whatever was asked for
                        out.restart()
                    out.writelines(answer.iter_bytes(CHUNK))
            except httpx2.TransportError as error:
                raise BrokenOffError(f"{file.path} broke off at {out.tell()} bytes ({type(error).__name__})") from error
            except errors.HfHubHTTPError as error:
                if error.response.status_code in _PASSING:
                    raise BrokenOffError(f"{file.path}: HTTP status {error.response.status_code}") from error
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """The library's errors as sentences."""
        try:
            yield
        except errors.OfflineModeIsEnabled as error:
            raise CommandError("HF_HUB_OFFLINE is set, so nothing can be downloaded") from error
        except errors.GatedRepoError as error:
            raise CommandError(f"{self._id} is gated: {self._about_token()}") from error
        except errors.RepositoryNotFoundError as error:
            raise CommandError(
                f"there is no repository {self._id} at {self._endpoint}, or it is private: {self._about_token()}"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CommandError(f"{self._id} has no revision {self._revision!r}") from error
        except errors.HFValidationError as error:
            raise CommandError(f"{self._id!r} is not a repository id, such as org/name") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            hint = f": {self._about_token()}" if status in (401, 403) else ""
            raise CommandError(f"{self._endpoint} answers with HTTP status {status} for {self._id}{hint}") from error
        except httpx2.HTTPError as error:
            raise CommandError(f"{self._endpoint} cannot be reached: {type(error).__name__}") from error

    def _about_token(self) -> str:
        if self._token:
            return f"the token in {TOKEN_VARIABLE} does not give access"
        return f"it needs a token in {TOKEN_VARIABLE}"


def _remote(file: RepoSibling) -> RemoteFile:
    if file.lfs is not None:
        return RemoteFile(file.rfilename, file.lfs.size, Digest("sha256", file.lfs.sha256), file.lfs.sha256)
    if file.size is None:
        raise CommandError(f"the hub reports no size for {file.rfilename}")
    blob = Digest("git", file.blob_id) if file.blob_id else None
    return RemoteFile(file.rfilename, file.size, blob, file.blob_id or "")


def _patiently(ask: Callable[[], T]) -> T:
    """The library asks such a question only once."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return ask()
        except (httpx2.TransportError, errors.HfHubHTTPError) as error:  # noqa: PERF203
            if isinstance(error, errors.HfHubHTTPError) and error.response.status_code not in _PASSING:
                raise
            log.warning("the hub does not answer (%s); trying again", type(error).__name__)
            time.sleep(2.0**attempt / 2)
    return ask()
