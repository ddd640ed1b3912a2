"""Checkpoints in S3, or a store that speaks its language, through boto3."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ResponseStreamingError,
)

from triton_chat_server.errors import CommandError
from triton_chat_server.fetch.files import Digest, RemoteFile, Sink, Snapshot
from triton_chat_server.fetch.parts import CHUNK, CONNECTIONS, BrokenOffError

log = logging.getLogger("fetch")

_URI = re.compile(r"s3://(?P<bucket>[^/]+)(/(?P<prefix>.*))?")
_MD5 = re.compile(r"[0-9a-f]{32}")
_ATTEMPTS = 5
_BROKEN_OFF = (HTTPClientError, IncompleteReadError, ResponseStreamingError)


class S3Source:
    """`uri` is s3://bucket/prefix. Raises CommandError for another."""

    def __init__(self, uri: str, endpoint: str | None = None, region: str | None = None) -> None:
        match = _URI.fullmatch(uri)
        if match is None:
            raise CommandError(f"{uri!r} is not s3://bucket/prefix")
        self._uri = uri.rstrip("/")
        self._bucket = match["bucket"]
        prefix = (match["prefix"] or "").strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        config = Config(retries={"mode": "standard", "max_attempts": _ATTEMPTS}, max_pool_connections=CONNECTIONS)
        try:
            self._client: Any = boto3.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
        except ValueError as error:  # not its text: an endpoint of the environment may hold a password
            raise CommandError("the endpoint of S3 must be http://host or https://host") from error
        except BotoCoreError as error:  # such as a profile that is not there
            raise CommandError(f"the settings for S3 are wrong: {error}") from error

    @property
    def identity(self) -> dict[str, str]:
        """See `Source`."""
        return {"kind": "s3", "endpoint": self._endpoint or "", "uri": self._uri}

    def snapshot(self) -> Snapshot:
        """See `Source`. The listing itself is the pin: it has no other name."""
        files = {}
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for item in (item for page in pages for item in page.get("Contents", ())):
                path = item["Key"].removeprefix(self._prefix)
                files[path] = RemoteFile(path, item["Size"], etag=item["ETag"].strip('"'))
        if not files:
            raise CommandError(f"{self._uri} has no objects")
        return Snapshot(None, files)

    def detailed(self, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        """See `Source`."""
        with self._explained():
            return tuple(self._with_digest(file) for file in files)

    def append(self, snapshot: Snapshot, file: RemoteFile, out: Sink) -> None:  # noqa: ARG002
        """See `Source`. boto3 tries requests again by itself, but not the reading of an answer that breaks off."""
        with self._explained():
            try:
                answer = self._client.get_object(**self._object(file), Range=f"bytes={out.tell()}-")
                out.writelines(answer["Body"].iter_chunks(CHUNK))
            except _BROKEN_OFF as error:
                raise BrokenOffError(f"{file.path} broke off at {out.tell()} bytes ({type(error).__name__})") from error

    def _with_digest(self, file: RemoteFile) -> RemoteFile:
        """What the store says about the content, if it says something about the whole of it."""
        about = self._client.head_object(**self._object(file), ChecksumMode="ENABLED")
        checksum = about.get("ChecksumSHA256", "")
        if checksum and "-" not in checksum:  # with a dash, of its parts
            return replace(file, digest=Digest("sha256", base64.b64decode(checksum).hex()))
        own_keys = about.get("SSECustomerAlgorithm") or "kms" in about.get("ServerSideEncryption", "")
        if file.etag and _MD5.fullmatch(file.etag) and not own_keys:
            return replace(file, digest=Digest("md5", file.etag))
        log.warning("%s: the store has no checksum for the whole file; only its size is verified", file.path)
        return file

    def _object(self, file: RemoteFile) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + file.path, "IfMatch": f'"{file.etag}"'}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """The library's errors as sentences."""
        try:
            yield
        except NoCredentialsError as error:
            raise CommandError(
                "there are no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the service "
                "account a role"
            ) from error
        except ClientError as error:
            raise CommandError(self._refusal(error)) from error
        except BotoCoreError as error:
            raise CommandError(
                f"{self._endpoint or 'S3'} cannot be reached, or the connection broke: {type(error).__name__}"
            ) from error

    def _refusal(self, error: ClientError) -> str:
        code = str(error.response["Error"]["Code"])
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "NoSuchBucket":
            return f"there is no bucket {self._bucket!r}"
        if status == HTTPStatus.PRECONDITION_FAILED:
            return f"{self._uri} changed while it was fetched; run the command again"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return f"the credentials do not allow listing and reading {self._uri} ({code})"
        return f"{self._endpoint or 'S3'} answers with {code} (HTTP status {status}) for {self._uri}"
