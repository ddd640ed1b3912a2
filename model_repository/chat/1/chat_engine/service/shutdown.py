"""Notices that Triton stops. By itself it tells a model only when nothing is in flight any more, by `finalize`.

What a stopping server does first, whatever made it stop, is to close its listening sockets; `/proc` shows that. Asking
Triton with `pb_utils.is_model_ready` instead was tried: with it, 3 of 8 stops of tritonserver 2.51 ended in an abort.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_SCAN_EVERY = (
    100  # polls: the kernel walks all its connections for a scan, so only the known sockets are looked at often
)
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
        self._known: dict[Path, str] = {}
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch, if it does not yet. For the first request: before that, sockets may still be to come."""
        if self._thread is None:
            self._known = listening_sockets(self._server)
            self._thread = threading.Thread(target=self._loop, name="shutdown-watch", daemon=True)
            self._thread.start()

    def sees_a_stop(self) -> bool:
        """Whether the server has closed a listening socket, looked up now."""
        return any(_target(file) != name for file, name in self._known.items())

    def close(self) -> None:
        """Stops watching; waits for `on_stop` where that runs."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        polls = 0
        while not self.sees_a_stop():
            if self._closing.wait(_POLL_SECONDS):
                return
            polls += 1
            if polls % _SCAN_EVERY == 0:
                self._known = listening_sockets(self._server) | self._known
        log.info("the server stops; running answers may finish within the drain time")
        self._on_stop()


def listening_sockets(process: int) -> dict[Path, str]:
    """The listening TCP sockets of a process, as Linux shows them: `/proc/1/fd/7` to `socket:[12345]`.

    Empty where they may not be seen.
    """
    folder = Path("/proc") / str(process)
    try:
        tables = [(folder / "net" / name).read_text() for name in ("tcp", "tcp6") if (folder / "net" / name).exists()]
        files = {file: _target(file) for file in (folder / "fd").iterdir()}
    except OSError:
        return {}
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == _LISTENING}
    return {file: name for file, name in files.items() if name in listening}


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # closed
        return ""
