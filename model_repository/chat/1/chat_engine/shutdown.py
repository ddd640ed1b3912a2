"""Notices that Triton stops. By itself it tells a model only when nothing is in flight any more, by `finalize`."""

from __future__ import annotations

import threading
from collections.abc import Callable

_POLL_SECONDS = 0.25


class ShutdownWatch:
    """Asks again and again whether the server is up, and calls `on_stop` once it no longer is.

    Args:
        is_server_up: Triton's answer.
        on_stop: called at most once, on the thread of the watch.
    """

    def __init__(self, is_server_up: Callable[[], bool], on_stop: Callable[[], None]) -> None:
        self._is_server_up = is_server_up
        self._on_stop = on_stop
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch, if it does not yet. For the first request: before that, the server may still be starting."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="shutdown-watch", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stops watching; waits for `on_stop` where that runs."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            if not self._is_server_up():
                self._on_stop()
                return
