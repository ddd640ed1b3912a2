"""Notices that Triton stops. By itself it tells a model only when nothing is in flight any more, by `finalize`.

What a stopping server does first, whatever made it stop, is to close its listening sockets; `/proc` shows that. Asking
Triton with `pb_utils.is_model_ready` is no way: its answer of a stopping server is an error, and passing errors to the
model that way corrupts the shared memory of some versions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_LISTENING = "0A"


class ShutdownWatch:
    """Looks at a server process again and again, and calls `on_stop` once it has closed a listening socket.

    Args:
        server: process id.
        on_stop: called at most once, on the thread of the watch.
    """

    def __init__(self, server: int, on_stop: Callable[[], None]) -> None:
        self._server = server
        self._on_stop = on_stop
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch, if it does not yet. For the first request: before that, sockets may still be to come."""
        if self._thread is None:
            known = listening_sockets(self._server)
            self._thread = threading.Thread(target=self._loop, args=(known,), name="shutdown-watch", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stops watching; waits for `on_stop` where that runs."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _loop(self, known: frozenset[str]) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            now = listening_sockets(self._server)
            if known - now:
                log.info("the server stops; running answers may finish within the drain time")
                self._on_stop()
                return
            known = now


def listening_sockets(process: int) -> frozenset[str]:
    """The listening TCP sockets of a process, as Linux names them (`socket:[12345]`); none where it may not be seen."""
    folder = Path("/proc") / str(process)
    listening: set[str] = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            rows = (line.split() for line in (folder / "net" / table).read_text().splitlines()[1:])
            listening |= {f"socket:[{row[9]}]" for row in rows if row[3] == _LISTENING}
    return frozenset(listening & _open_files(folder / "fd"))


def _open_files(folder: Path) -> set[str]:
    found = set()
    with suppress(OSError):
        for entry in folder.iterdir():
            with suppress(OSError):  # closed meanwhile
                found.add(str(entry.readlink()))
    return found
