from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from triton_chat_server.errors import CommandError
from triton_chat_server.fetch import lock
from triton_chat_server.fetch.lock import locked

HOLD = """
import sys
from pathlib import Path
from triton_chat_server.fetch.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock of `tmp_path`."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout as answers:
        assert answers.readline() == "locked\n"
    return holder


@pytest.mark.parametrize("end", ["release", "kill"])
def test_a_second_one_waits_for_the_first(
    other: subprocess.Popen[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    caplog.set_level(logging.INFO)
    waiting, entered = threading.Event(), threading.Event()

    class Noticed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waiting.set()

    def enter() -> None:
        with locked(tmp_path):
            entered.set()

    handler = Noticed()
    lock.log.addHandler(handler)
    try:
        thread = threading.Thread(target=enter)
        thread.start()
        assert waiting.wait(10)
        assert not entered.is_set()
        if end == "kill":
            other.kill()
        assert other.stdin is not None
        other.stdin.close()
        assert entered.wait(10)
        thread.join()
        other.wait()
    finally:
        lock.log.removeHandler(handler)
    assert "waiting for another fetch into this folder" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be written: No such file"), locked(tmp_path / "none"):
        pass


@pytest.mark.parametrize(("number", "goes_on"), [(errno.EOPNOTSUPP, True), (errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, goes_on: bool
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if goes_on:
        with locked(tmp_path):
            assert "the file system has no locks" in caplog.text
    else:
        with pytest.raises(CommandError, match="cannot be locked"), locked(tmp_path):
            pass


def test_the_file_is_for_every_user(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with locked(tmp_path):
            assert stat.S_IMODE((tmp_path / lock.NAME).stat().st_mode) == 0o666
    finally:
        os.umask(before)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_one_that_can_only_be_read_is_good_enough(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened, waiting = os.open, threading.Event()

    def only_reads(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise OSError(number, "no")
        return opened(path, flags, mode)

    def waits(message: str) -> None:
        waiting.set()
        assert other.stdin is not None
        other.stdin.close()

    monkeypatch.setattr(os, "open", only_reads)
    monkeypatch.setattr(lock.log, "info", waits)
    with locked(tmp_path):
        assert waiting.is_set()
    other.wait()
