"""`fetch s3` through the real boto3, against moto's server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ResponseStreamingError
from moto.server import ThreadedMotoServer

from tests.server.checkpoints import OTHER, SINGLE, WEIGHTS, files_in, sharded
from triton_chat_server.errors import CommandError
from triton_chat_server.fetch import parts
from triton_chat_server.fetch.files import RemoteFile, Sink
from triton_chat_server.fetch.parts import CHUNK
from triton_chat_server.fetch.run import fetch
from triton_chat_server.fetch.s3 import S3Source

Put = Callable[..., None]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret_of_mine")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parts, "_WAIT_S", 0.0)


@pytest.fixture
def client(endpoint: str) -> Any:
    made = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    made.create_bucket(Bucket="models")
    yield made
    for item in made.list_objects_v2(Bucket="models").get("Contents", ()):
        made.delete_object(Bucket="models", Key=item["Key"])
    made.delete_bucket(Bucket="models")


@pytest.fixture
def put(client: Any) -> Put:
    def call(files: Mapping[str, bytes], prefix: str = "llm/tiny/", **options: str) -> None:
        for name, data in files.items():
            client.put_object(Bucket="models", Key=prefix + name, Body=data, **options)

    return call


@pytest.fixture
def get(endpoint: str, client: Any, tmp_path: Path) -> Callable[..., Path]:
    def call(uri: str = "s3://models/llm/tiny", **options: bool) -> Path:
        fetch(S3Source(uri, endpoint), tmp_path / "target", **options)
        return tmp_path / "target"

    return call


def test_what_transformers_needs_and_nothing_else(put: Put, get: Callable[..., Path]) -> None:
    put({**SINGLE, **OTHER})
    put({"config.json": b"another"}, prefix="llm/tiny-2/")
    target = get()
    assert files_in(target) == SINGLE
    found = json.loads((target / ".triton-chat-fetch.json").read_text())
    assert (found["commit"], found["complete"]) == (None, True)
    assert found["files"]["model.safetensors"] == {
        "size": len(WEIGHTS),
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
        "etag": hashlib.md5(WEIGHTS).hexdigest(),
    }


def test_a_bucket_without_a_prefix(put: Put, get: Callable[..., Path]) -> None:
    put(sharded(), prefix="")
    assert files_in(get("s3://models")) == sharded()


def test_the_second_run_asks_nobody(put: Put, get: Callable[..., Path], client: Any) -> None:
    put(SINGLE)
    get()
    put({"config.json": b'{"model_type": "other"}'})
    assert files_in(get()) == SINGLE


def test_another_prefix_replaces_the_files(put: Put, get: Callable[..., Path]) -> None:
    put(SINGLE)
    put(sharded(), prefix="other/")
    get()
    assert files_in(get("s3://models/other/")) == sharded()


def test_a_file_that_changes_between_two_runs_is_not_mixed(
    put: Put, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same names, same sizes, and the first run stops halfway."""
    put(SINGLE)
    append = S3Source.append

    def breaks_off(self: S3Source, snapshot: Any, file: RemoteFile, out: Sink) -> None:
        if file.path == "model.safetensors":
            out.write(WEIGHTS[: 2 * CHUNK])
            raise CommandError("the power went")
        append(self, snapshot, file, out)

    monkeypatch.setattr(S3Source, "append", breaks_off)
    with pytest.raises(CommandError, match="the power went"):
        get()
    monkeypatch.setattr(S3Source, "append", append)
    later = {name: bytes(reversed(data)) for name, data in SINGLE.items()}
    put(later)
    assert files_in(get()) == later


def test_a_file_that_changes_under_way_is_not_mixed(
    put: Put, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(SINGLE)
    append = S3Source.append

    def changed_before(self: S3Source, snapshot: Any, file: RemoteFile, out: Sink) -> None:
        put({file.path: bytes(reversed(SINGLE[file.path]))})
        append(self, snapshot, file, out)

    monkeypatch.setattr(S3Source, "append", changed_before)
    with pytest.raises(CommandError, match="s3://models/llm/tiny changed while it was fetched"):
        get()


def test_another_endpoint_holds_the_same_thing(put: Put, get: Callable[..., Path]) -> None:
    put(SINGLE)
    target = get()
    fetch(S3Source("s3://models/llm/tiny/", "http://127.0.0.1:9", "us-east-1"), target)  # where nobody is


def test_an_answer_that_breaks_off_is_taken_up(
    put: Put, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(SINGLE)
    source = S3Source("s3://models/llm/tiny", endpoint)
    get_object, ranges = source._client.get_object, []

    class HalfBody:
        def __init__(self, body: Any) -> None:
            self._chunks = body.iter_chunks(CHUNK)

        def iter_chunks(self, size: int) -> Iterator[bytes]:
            yield next(self._chunks)
            raise ResponseStreamingError(error="connection reset")

    def broken_twice(**options: str) -> dict[str, Any]:
        answer = get_object(**options)
        if options["Key"].endswith("model.safetensors"):
            ranges.append(options["Range"])
            if len(ranges) < 3:
                return {"Body": HalfBody(answer["Body"])}
        return answer

    monkeypatch.setattr(source._client, "get_object", broken_twice)
    fetch(source, tmp_path / "target")
    assert files_in(tmp_path / "target") == SINGLE
    assert ranges == ["bytes=0-", f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]


@pytest.mark.parametrize("with_sha256", [True, False])
def test_a_corrupted_file_is_refused_and_fetched_anew(
    put: Put, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, with_sha256: bool
) -> None:
    put({name: data for name, data in SINGLE.items() if name != "model.safetensors"})
    put({"model.safetensors": WEIGHTS}, **({"ChecksumAlgorithm": "SHA256"} if with_sha256 else {}))
    append = S3Source.append

    def flips_a_bit(self: S3Source, snapshot: Any, file: RemoteFile, out: Sink) -> None:
        append(self, snapshot, file, out)
        if file.path == "model.safetensors":
            out.restart()
            out.write(WEIGHTS[:-1] + b"\0")

    monkeypatch.setattr(S3Source, "append", flips_a_bit)
    kind = "sha256" if with_sha256 else "md5"
    with pytest.raises(CommandError, match=rf"model.safetensors is corrupted: its {kind} checksum differs"):
        get()
    monkeypatch.setattr(S3Source, "append", append)
    assert files_in(get()) == SINGLE


def test_a_file_of_several_parts_has_no_sum_to_check(
    put: Put, get: Callable[..., Path], client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put({name: data for name, data in SINGLE.items() if name != "model.safetensors"})
    key = {"Bucket": "models", "Key": "llm/tiny/model.safetensors"}
    upload = client.create_multipart_upload(**key)["UploadId"]
    part = client.upload_part(**key, UploadId=upload, PartNumber=1, Body=WEIGHTS)
    done = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload=done)
    caplog.set_level("WARNING")
    assert files_in(get()) == SINGLE
    assert "model.safetensors: the store has no checksum for the whole file" in caplog.text


class TestRefusals:
    def test_an_uri_that_is_none(self) -> None:
        with pytest.raises(CommandError, match="'https://x/y' is not s3://bucket/prefix"):
            S3Source("https://x/y")

    def test_an_endpoint_that_is_none(self) -> None:
        with pytest.raises(CommandError, match="the endpoint of S3 must be http://host"):
            S3Source("s3://models", "not a url")

    def test_a_profile_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nope")
        with pytest.raises(CommandError, match=r"the settings for S3 are wrong: .*\(nope\) could not be found"):
            S3Source("s3://models")

    def test_nothing_there(self, get: Callable[..., Path]) -> None:
        with pytest.raises(CommandError, match="s3://models/none has no objects"):
            get("s3://models/none")

    def test_no_bucket(self, get: Callable[..., Path]) -> None:
        with pytest.raises(CommandError, match="there is no bucket 'nowhere'"):
            get("s3://nowhere/x")

    def test_no_credentials(self, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        with pytest.raises(CommandError, match="there are no credentials for S3: set AWS_ACCESS_KEY_ID"):
            get()

    def test_nobody_there(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
            fetch(S3Source("s3://models/x", "http://127.0.0.1:9", "us-east-1"), tmp_path)

    def test_access_denied_names_no_secret(self, endpoint: str, tmp_path: Path) -> None:
        from botocore.stub import Stubber

        source = S3Source("s3://models/x", endpoint)
        with Stubber(source._client) as stub:
            stub.add_client_error("list_objects_v2", "AccessDenied", http_status_code=403)
            with pytest.raises(
                CommandError, match=r"do not allow listing and reading s3://models/x \(AccessDenied\)"
            ) as e:
                fetch(source, tmp_path)
        assert "secret_of_mine" not in str(e.value)
