"""`fetch hub` through the real huggingface_hub, against a hub on loopback."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.server.checkpoints import OTHER, SINGLE, WEIGHTS, files_in, sharded
from tests.server.fake_hub import FakeHub
from triton_chat_server.errors import CommandError
from triton_chat_server.fetch import hub as module
from triton_chat_server.fetch import parts, run
from triton_chat_server.fetch.command import main
from triton_chat_server.fetch.files import RemoteFile, Sink, Snapshot
from triton_chat_server.fetch.hub import HubSource
from triton_chat_server.fetch.parts import CHUNK
from triton_chat_server.fetch.run import fetch

ID = "org/tiny"


def marker(target: Path) -> dict[str, object]:
    return json.loads((target / ".triton-chat-fetch.json").read_text())


def eventually(condition: Callable[[], bool], within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)


@pytest.fixture
def get(hub: FakeHub, tmp_path: Path) -> Callable[..., Path]:
    """Fetches into one folder, and returns it."""

    def call(revision: str = "main", repo_id: str = ID, **options: bool) -> Path:
        fetch(HubSource(repo_id, revision, hub.url), tmp_path / "target", **options)
        return tmp_path / "target"

    return call


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_WAIT_S", 0.0)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


def test_what_transformers_needs_and_nothing_else(hub: FakeHub, get: Callable[..., Path]) -> None:
    commit = hub.repository().commit({**SINGLE, **OTHER})
    target = get()
    assert files_in(target) == SINGLE
    assert marker(target)["commit"] == commit
    assert marker(target)["source"] == {"kind": "hub", "endpoint": hub.url, "id": ID, "revision": "main"}
    assert {name: kept["size"] for name, kept in marker(target)["files"].items()} == {
        name: len(data) for name, data in SINGLE.items()
    }


def test_shards_by_their_index(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit({**sharded(3), "model-00009-of-00009.safetensors": b"left over"})
    assert files_in(get()) == sharded(3)


def test_the_second_run_asks_nobody(hub: FakeHub, get: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    hub.repository().commit(SINGLE)
    target = get()
    hub.repositories.clear()
    caplog.set_level(logging.INFO)
    get()
    assert "already there, commit" in caplog.text
    assert files_in(target) == SINGLE


def test_a_branch_that_moves_changes_nothing_that_is_there(hub: FakeHub, get: Callable[..., Path]) -> None:
    first = hub.repository().commit(SINGLE)
    get()
    hub.repository().commit(sharded())
    target = get()
    assert (files_in(target), marker(target)["commit"]) == (SINGLE, first)


def test_a_branch_that_moves_during_the_download_does_not_mix(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    hub.broken_off = {"model.safetensors": 1_000_000}
    hub.corrupted = {"config.json"}
    with pytest.raises(CommandError, match=r"config\.json is corrupted"):
        get()
    hub.corrupted.clear()
    later = hub.repository().commit(sharded())
    target = get()
    assert (files_in(target), marker(target)["commit"]) == (sharded(), later)


def test_the_commit_is_the_same_to_the_last_byte(hub: FakeHub, get: Callable[..., Path]) -> None:
    """The branch moves while a file is under way, to files of the same names and sizes; then the connection breaks."""
    first = hub.repository().commit(SINGLE)
    hub.held = {"model.safetensors"}
    hub.broken_off = {"model.safetensors": 2_000_000}
    with ThreadPoolExecutor() as pool:
        fetching = pool.submit(get)
        assert hub.halfway.wait(20)
        eventually(lambda: len(hub.downloads) == len(SINGLE))
        hub.repository().commit({name: bytes(reversed(data)) for name, data in SINGLE.items()})
        hub.busy = 2  # asked again, too, in the middle
        hub.release.set()
        target = fetching.result(20)
    assert (files_in(target), marker(target)["commit"]) == (SINGLE, first)
    assert len(hub.fetched("model.safetensors")) == 2
    assert hub.busy == 0


def test_a_file_without_content(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit({**SINGLE, "merges.txt": b""})
    assert files_in(get()) == {**SINGLE, "merges.txt": b""}


def test_a_mirror_holds_the_same_thing(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    target = get()
    fetch(HubSource(ID, "main", "http://127.0.0.1:9"), target)  # where nobody is


def test_what_is_there_stays_until_the_next_one_is_found(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    hub.repository("org/empty").commit({"README.md": b""})
    target = get()
    for typo in ({"revision": "mian"}, {"repo_id": "org/tny"}, {"repo_id": "org/empty"}):
        with pytest.raises(CommandError):
            get(**typo)
        assert files_in(target) == SINGLE
    hub.repositories.clear()
    get()


def test_a_failure_ends_the_other_downloads(
    hub: FakeHub, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are only half there when the shard beside them turns out to be gone."""
    hub.repository().commit(sharded())
    append = HubSource.append
    failed = threading.Event()

    def second_fails(self: HubSource, snapshot: Snapshot, file: RemoteFile, out: Sink) -> None:
        if file.path.startswith("model-00002"):
            failed.set()
            raise CommandError("it is gone")
        if file.path.startswith("model-00001"):
            assert failed.wait(20)
            while True:  # until the sink says that this one is to end
                out.restart()
                out.write(b"x")
        append(self, snapshot, file, out)

    with monkeypatch.context() as patched:
        patched.setattr(HubSource, "append", second_fails)
        with pytest.raises(CommandError, match="it is gone"):
            get()
    assert files_in(get()) == sharded()


def test_another_revision_replaces_the_files(hub: FakeHub, get: Callable[..., Path]) -> None:
    first = hub.repository().commit(SINGLE)
    second = hub.repository().commit(sharded())
    get(first)
    target = get(second)
    assert (files_in(target), marker(target)["commit"]) == (sharded(), second)
    assert files_in(get(first)) == SINGLE


def test_another_repository_replaces_the_files(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    hub.repository("org/other").commit({**sharded(), "config.json": b'{"model_type": "other"}'})
    get()
    target = get(repo_id="org/other")
    assert files_in(target) == {**sharded(), "config.json": b'{"model_type": "other"}'}


def test_a_file_that_was_lost_comes_back(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    target = get()
    (target / "tokenizer.json").unlink()
    (target / "model.safetensors").write_bytes(WEIGHTS[:1000])
    get()
    assert files_in(target) == SINGLE


def test_verify_finds_a_bit_that_has_changed(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    target = get()
    (target / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"\0")
    get()
    assert files_in(target) != SINGLE, "a quick look at the sizes does not find it"
    sent = len(hub.fetched("model.safetensors"))
    get(verify=True)
    assert files_in(target) == SINGLE
    get(verify=True)
    assert len(hub.fetched("model.safetensors")) == sent + 1


def test_verify_changes_nothing_while_another_fetch_is_at_work(
    hub: FakeHub, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository().commit(SINGLE)
    target = get()
    damaged = WEIGHTS[:-1] + b"\0"
    (target / "model.safetensors").write_bytes(damaged)

    class BusyError(Exception):
        pass

    def busy(folder: Path) -> None:
        raise BusyError

    with monkeypatch.context() as patched:
        patched.setattr(run, "locked", busy)
        with pytest.raises(BusyError):
            get(verify=True)
    assert (target / "model.safetensors").read_bytes() == damaged


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_corrupted_file_is_refused_and_fetched_anew(hub: FakeHub, get: Callable[..., Path], path: str) -> None:
    hub.repository().commit(SINGLE)
    hub.corrupted = {path}
    with pytest.raises(CommandError, match=rf"{path} is corrupted: its (sha256|git) checksum differs"):
        get()
    hub.corrupted.clear()
    others = len(hub.fetched("tokenizer.json"))
    assert files_in(get()) == SINGLE
    assert len(hub.fetched("tokenizer.json")) == others, "what is whole is not fetched again"


def test_a_connection_that_breaks_off_is_taken_up(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    hub.broken_off = {"model.safetensors": 2_500_000}
    assert files_in(get()) == SINGLE
    first, second = hub.fetched("model.safetensors")
    assert (first.start, second.start) == (0, 2 * CHUNK)


def test_a_server_without_ranges_costs_only_time(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    hub.broken_off = {"model.safetensors": 2_500_000}
    hub.rangeless = {"model.safetensors"}
    assert files_in(get()) == SINGLE
    assert [download.start for download in hub.fetched("model.safetensors")] == [0, 0]


def test_a_busy_hub_is_asked_again(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    hub.busy = 3
    assert files_in(get()) == SINGLE


def test_what_a_killed_run_has_is_kept(hub: FakeHub, tmp_path: Path) -> None:
    hub.repository().commit(SINGLE)
    hub.held = {"model.safetensors"}
    target = tmp_path / "target"
    command = [sys.executable, "-m", "triton_chat_server", "fetch", "hub", "--id", ID, "--target", str(target)]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HOME": "/nonexistent"}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert hub.halfway.wait(30)
    eventually(lambda: any(path.stat().st_size == 2 * CHUNK for path in target.rglob("*.part")))
    running.send_signal(signal.SIGTERM)
    assert running.wait(5) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in running.communicate()[1]
    assert not marker(target)["complete"]

    hub.held.clear()
    hub.release.set()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files_in(target) == SINGLE
    assert hub.fetched("model.safetensors")[-1].start == 2 * CHUNK
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


class TestTheToken:
    def test_opens_a_gated_repository(
        self, hub: FakeHub, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository().commit(SINGLE)
        hub.repository().token = "hf_good"
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        assert files_in(get()) == SINGLE

    def test_is_asked_for(self, hub: FakeHub, get: Callable[..., Path]) -> None:
        hub.repository().commit(SINGLE)
        hub.repository().token = "hf_good"
        with pytest.raises(CommandError, match="org/tiny is gated: it needs a token in HF_TOKEN"):
            get()

    def test_is_not_told(self, hub: FakeHub, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repository().commit(SINGLE)
        hub.repository().token = "hf_good"
        monkeypatch.setenv("HF_TOKEN", "hf_bad_secret")
        with pytest.raises(CommandError, match="the token in HF_TOKEN does not give access") as caught:
            get()
        assert "hf_bad_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"README.md": b""}, "config.json is missing"),
        ({"config.json": b"{}"}, "no weights found"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "only pickled weights .* use --convert"),
        ({"config.json": b"{}", "model.safetensors.index.json": b"[]"}, "is not a valid index of weights"),
        (
            {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
            "names the file '../x.safetensors', which does not exist",
        ),
    ],
)
def test_no_checkpoint(hub: FakeHub, get: Callable[..., Path], files: dict[str, bytes], sentence: str) -> None:
    hub.repository().commit(files)
    with pytest.raises(CommandError, match=sentence):
        get()


def test_refusals_say_what_is_wrong(hub: FakeHub, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match=f"there is no repository {ID} at {hub.url}, or it is private"):
        get()
    hub.repository().commit(SINGLE)
    with pytest.raises(CommandError, match="has no revision 'v9'"):
        get("v9")
    with pytest.raises(CommandError, match="'a b' is not a repository id"):
        get(repo_id="a b")
    hub.busy = 1000
    with pytest.raises(CommandError, match="answers with HTTP status 503"):
        get()


def test_a_size_that_is_not_told(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    hub.sizeless = {"tokenizer.json"}
    with pytest.raises(CommandError, match=r"reports no size for tokenizer\.json"):
        get()


@pytest.mark.parametrize("page", [b"<html>log in first</html>", b"[]", b"{}", b'{"id": "a/b", "siblings": [{}]}'])
def test_a_proxy_that_answers_in_the_place_of_the_hub(hub: FakeHub, get: Callable[..., Path], page: bytes) -> None:
    hub.page = page
    with pytest.raises(CommandError, match=rf"{hub.url} answers, but not like a hub"):
        get()


def test_more_than_was_told_is_not_written(
    hub: FakeHub, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = hub.repository().commit(SINGLE)

    def longer(self: HubSource, snapshot: Snapshot, file: RemoteFile, out: Sink) -> None:
        hub.repository().commits[commit] = {**SINGLE, "config.json": SINGLE["config.json"] + b" "}
        append(self, snapshot, file, out)

    append = HubSource.append
    monkeypatch.setattr(HubSource, "append", longer)
    with pytest.raises(CommandError, match=r"config\.json is longer than the 23 bytes that the source reported"):
        get()
    assert not (tmp_path / "target" / "config.json").exists()


def test_an_index_is_not_read_into_memory_whatever_its_size(
    hub: FakeHub, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository().commit(sharded())
    monkeypatch.setattr(parts, "_CONTENT_BYTES", 50)
    with pytest.raises(CommandError, match="at most 50 are allowed"):
        get()
    assert not hub.downloads


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        fetch(HubSource(ID, "main", "http://127.0.0.1:9"), tmp_path / "target")


def test_a_full_disk_is_found_before(
    hub: FakeHub, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repository().commit(SINGLE)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(CommandError, match=r"has 1\.0 MB free, but 3\.1 MB are needed"):
        get()
    assert not hub.fetched("model.safetensors")


def test_weights_of_somebody_else_are_not_mixed_in(hub: FakeHub, get: Callable[..., Path], tmp_path: Path) -> None:
    hub.repository().commit(sharded())
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "model.safetensors").write_bytes(b"by hand")
    with pytest.raises(CommandError, match=r"holds model\.safetensors, which this command did not fetch"):
        get()
    assert (tmp_path / "target" / "model.safetensors").read_bytes() == b"by hand"


def test_a_volume_that_is_read_only_by_now_is_fine(hub: FakeHub, get: Callable[..., Path]) -> None:
    hub.repository().commit(SINGLE)
    target = get()
    (target / ".triton-chat-fetch.lock").unlink()
    (target / ".triton-chat-fetch.lock").mkdir()  # no lock can be taken, nor anything be written
    get()


@pytest.mark.parametrize(
    "text", ['{"version": 1, "files"', '{"version": 1, "files": {}, "source": 7, "commit": null, "complete": true}']
)
def test_a_damaged_marker_is_none(hub: FakeHub, get: Callable[..., Path], text: str) -> None:
    hub.repository().commit(SINGLE)
    target = get()
    (target / ".triton-chat-fetch.json").write_text(text)
    assert files_in(get()) == SINGLE
    assert marker(target)["complete"]


def test_two_at_once_download_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.repository().commit(SINGLE)
    hub.held = {"model.safetensors"}
    command = [sys.executable, "-m", "triton_chat_server", "fetch", "hub", "--id", ID, "--endpoint", hub.url]
    command += ["--target", str(tmp_path / "target")]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert hub.halfway.wait(30)
    second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert "waiting for another fetch" in second.stderr.readline()
    hub.release.set()
    assert [process.wait(30) for process in (first, second)] == [0, 0]
    assert "already there" in second.communicate()[1]
    first.communicate()
    assert len(hub.fetched("model.safetensors")) == 1


def test_the_command_says_in_a_line_what_is_wrong(hub: FakeHub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "triton_chat_server", "fetch", "hub", "--target", str(tmp_path), "--id", ID]
    done = subprocess.run([*command, "--endpoint", hub.url], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "fetch: there is no repository org/tiny at" in done.stderr


@pytest.mark.parametrize("endpoint", ["hub.example.com", "https://me:secret@hub.example.com", "ftp://hub.example.com"])
def test_an_endpoint_holds_no_password(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["hub", "--id", ID, "--target", "/x", "--endpoint", endpoint])
    assert caught.value.code == 2
    assert "must be http://host or https://host" in capsys.readouterr().err


def test_the_endpoint_of_the_environment_holds_none_either(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "triton_chat_server", "fetch", "hub", "--id", ID, "--target", str(tmp_path / "t")]
    environment = {**os.environ, "HF_ENDPOINT": "http://me:geheim@127.0.0.1:9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "HF_ENDPOINT or --endpoint must be http://host or https://host, without user or password" in done.stderr
    assert "geheim" not in done.stderr
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("kind", [["hub", "--id", ID], ["s3", "--uri", "s3://b/p"]])
def test_without_the_libraries_it_says_what_to_install(kind: list[str], tmp_path: Path) -> None:
    command = f"import sys; sys.modules.update(boto3=None, huggingface_hub=None); from {main.__module__} import main;"
    arguments = [*kind, "--target", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", f"{command} sys.exit(main({arguments!r}))"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'triton-chat[server]'" in done.stderr
    assert done.stderr.count("\n") == 1
