from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from http.client import HTTPMessage, IncompleteRead

import pytest

from tests.server.fake_hub import FakeHub, git_id

FILES = {"config.json": b"{}", "model.safetensors": bytes(100_000)}


def get(hub: FakeHub, path: str, **headers: str) -> tuple[int, HTTPMessage, bytes]:
    with urllib.request.urlopen(urllib.request.Request(f"{hub.url}/{path}", headers=headers), timeout=5) as answer:
        return answer.status, answer.headers, answer.read()


def test_a_git_id_is_what_git_says() -> None:
    assert git_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_revision_and_its_tree(hub: FakeHub) -> None:
    commit = hub.repository().commit(FILES)
    info = json.loads(get(hub, "api/models/org/tiny/revision/main?blobs=true")[2])
    tree = json.loads(get(hub, f"api/models/org/tiny/tree/{commit}")[2])
    assert info["sha"] == commit
    assert [file["rfilename"] for file in info["siblings"]] == [file["path"] for file in tree] == list(FILES)
    assert info["siblings"][1]["lfs"]["sha256"] == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert info["siblings"][0]["blobId"] == git_id(b"{}")


def test_a_branch_moves_and_a_commit_stays(hub: FakeHub) -> None:
    first = hub.repository().commit(FILES)
    hub.repository().commit({"config.json": b"[]"})
    assert get(hub, "org/tiny/resolve/main/config.json")[2] == b"[]"
    assert get(hub, f"org/tiny/resolve/{first}/config.json")[2] == b"{}"


def test_a_part_of_a_file(hub: FakeHub) -> None:
    hub.repository().commit(FILES)
    status, headers, body = get(hub, "org/tiny/resolve/main/model.safetensors", Range="bytes=99000-")
    assert (status, len(body), headers["Content-Range"]) == (206, 1000, "bytes 99000-99999/100000")
    hub.rangeless = {"model.safetensors"}
    status, _, body = get(hub, "org/tiny/resolve/main/model.safetensors", Range="bytes=99000-")
    assert (status, len(body)) == (200, 100_000)
    assert [download.start for download in hub.fetched("model.safetensors")] == [99_000, 0]


def test_failures_on_demand(hub: FakeHub) -> None:
    hub.repository().commit(FILES)
    path = "org/tiny/resolve/main/model.safetensors"
    hub.corrupted = {"model.safetensors"}
    assert sum(get(hub, path)[2]) == 1
    hub.broken_off = {"model.safetensors": 5000}
    with pytest.raises(IncompleteRead):
        get(hub, path)
    hub.busy = 1
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(hub, path)
    hub.repository().token = "good"
    with pytest.raises(urllib.error.HTTPError, match="401") as caught:
        get(hub, path, Authorization="Bearer bad")
    assert caught.value.headers["X-Error-Code"] == "GatedRepo"
    assert get(hub, path, Authorization="Bearer good")[0] == 200
    hub.page = b"<html>"
    assert get(hub, path)[2] == b"<html>"


def test_a_download_is_noted_before_its_last_byte(hub: FakeHub) -> None:
    hub.repository().commit(FILES)
    hub.held = {"model.safetensors"}
    with urllib.request.urlopen(f"{hub.url}/org/tiny/resolve/main/model.safetensors", timeout=5) as answer:
        assert answer.read(10)
        assert len(hub.fetched("model.safetensors")) == 1
        hub.release.set()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("api/models/org/none/revision/main", 401),
        ("api/models/org/tiny/revision/none", 404),
        ("org/tiny/resolve/main/none", 404),
        ("elsewhere", 404),
    ],
)
def test_what_is_not_there(hub: FakeHub, path: str, status: int) -> None:
    hub.repository().commit(FILES)
    with pytest.raises(urllib.error.HTTPError, match=str(status)):
        get(hub, path)
