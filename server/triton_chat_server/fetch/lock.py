"""One fetch at a time into a folder, also of pods that share a volume."""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_chat_server.errors import CommandError

log = logging.getLogger("fetch")

NAME = ".triton-chat-fetch.lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Waits for another fetch to end; the kernel frees the lock of one that dies.

    Raises CommandError where the folder cannot be written.
    """
    try:
        file = (target / NAME).open("a")
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror}") from error
    with file:
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise CommandError(f"{target} cannot be locked: {error.strerror}") from error
            log.warning("the file system has no locks: two fetches at once would both download")
        yield


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another fetch into this folder is at work; waiting for it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
