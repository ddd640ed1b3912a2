"""One fetch at a time into a folder, also of pods that share a volume."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from triton_chat_server.errors import CommandError

log = logging.getLogger("fetch")

NAME = ".triton-chat-fetch.lock"
_EVERYBODY = 0o666
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Waits for another fetch to end; the kernel frees the lock of one that dies.

    Raises CommandError where the folder cannot be written.
    """
    try:
        descriptor = _opened(target / NAME)
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror}") from error
    try:
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise CommandError(f"{target} cannot be locked: {error.strerror}") from error
            log.warning("the file system has no locks: two fetches at the same time would both download")
        yield
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """For every user: pods that share a volume may run as different ones."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _EVERYBODY)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # NFS alone wants more for a lock
    with suppress(OSError):  # another user's
        os.fchmod(descriptor, _EVERYBODY)  # whatever the umask
    return descriptor


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another fetch into this folder")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
