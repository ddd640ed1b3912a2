"""Downloads that go on where an earlier one stopped, whatever stopped it.

huggingface_hub does not: its release 2.4 starts a file anew after its process was killed.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from io import BytesIO
from pathlib import Path
from threading import Event

from triton_chat_server.errors import CommandError
from triton_chat_server.fetch.files import RemoteFile, Sink, StoppedError

log = logging.getLogger("fetch")

CONNECTIONS = 4
CHUNK = 1 << 20
_ATTEMPTS = 6
"""Without a single byte more; the waits between them grow from one second to sixteen."""
_WAIT_S = 1.0
_CONTENT_BYTES = 64 * 10**6
"""Far more than an index of weights has."""
FOLDER = Path(".triton-chat-fetch")
"""In the target, for what is incomplete."""

Append = Callable[[RemoteFile, Sink], None]
"""Writes the content from the writer's own position on. Raises BrokenOffError, or CommandError."""


class BrokenOffError(Exception):
    """The source did not answer, or not to the end; another attempt may help. The message is for a person."""


def download(files: Sequence[RemoteFile], target: Path, append: Append) -> None:
    """Puts the files into `target`, several at once. Where one fails, the others end too. Raises CommandError."""
    (target / FOLDER).mkdir(exist_ok=True)
    stop = Event()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        running = [pool.submit(_file, file, target, append, stop) for file in files]
        ended, others = wait(running, return_when=FIRST_EXCEPTION)
        stop.set()
        for download_of_one in others:
            download_of_one.cancel()
    for download_of_one in ended:
        download_of_one.result()


def content(file: RemoteFile, append: Append) -> bytes:
    """Of a small file, in memory. Raises CommandError."""
    if file.size > _CONTENT_BYTES:
        raise CommandError(f"{file.path} has {file.size} bytes; at most {_CONTENT_BYTES} are allowed")
    out = BytesIO()
    _append_all(file, Sink(file, out), append, Event())
    return out.getvalue()


def bytes_there(files: Sequence[RemoteFile], target: Path) -> int:
    """How much of the files is in `target`."""
    return sum(max(_size(target / file.path), _size(_part(file, target))) for file in files)


def clean(target: Path) -> None:
    """Removes what is incomplete."""
    shutil.rmtree(target / FOLDER, ignore_errors=True)


def _file(file: RemoteFile, target: Path, append: Append, stop: Event) -> None:
    path, part = target / file.path, _part(file, target)
    if path.is_file() and _size(path) == file.size:
        return
    with part.open("ab") as out:
        _append_all(file, Sink(file, out, stop), append, stop)
    path.parent.mkdir(parents=True, exist_ok=True)
    part.replace(path)


def _append_all(file: RemoteFile, out: Sink, append: Append, stop: Event) -> None:
    failures = 0
    while (there := out.tell()) < file.size:
        problem = _attempt(file, out, append)
        if problem is None:
            continue
        failures = 1 if out.tell() > there else failures + 1
        if failures == _ATTEMPTS:
            raise CommandError(f"{problem}; the next run resumes from there")
        log.warning("%s; trying again", problem)
        if stop.wait(_WAIT_S * 2.0 ** (failures - 1)):
            raise StoppedError


def _attempt(file: RemoteFile, out: Sink, append: Append) -> str | None:
    """What went wrong, if something did."""
    there = out.tell()
    try:
        append(file, out)
    except BrokenOffError as error:
        return str(error)
    return None if out.tell() > there else f"{file.path} broke off at {there} bytes"


def _part(file: RemoteFile, target: Path) -> Path:
    """Named by the version too, so that half of an older one is never gone on with."""
    name = hashlib.sha256(f"{file.etag} {file.path}".encode()).hexdigest()[:32]
    return target / FOLDER / f"{name}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # not there, or moved to its place just now
        return 0
