"""Tells the supervisor that a model's process lives, and whether it works.

`triton-chat-server serve` names a folder in TRITON_CHAT_HEARTBEATS and reads what the processes put there; without it
nothing is written.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

FOLDER_VARIABLE = "TRITON_CHAT_HEARTBEATS"
_INTERVAL_SECONDS = 0.5
_BYTES = 2048  # within a page
_LONGEST_COMPLAINT = 200


class Heartbeat:
    """A thread that writes the same small file again and again, from the moment at which the model is loaded.

    The file has one size from the start: its place stays its own when the tensors of others fill the memory.

    Args:
        model: its name.
        complaint: says why the model does not work; None while it does.
        is_finished: whether a server that stops need not wait for it any more, although it is still loaded.
    """

    def __init__(
        self,
        model: str,
        complaint: Callable[[], str | None] = lambda: None,
        is_finished: Callable[[], bool] = lambda: True,
    ) -> None:
        folder = os.environ.get(FOLDER_VARIABLE)
        self._path = Path(folder) / f"{os.getpid()}.json" if folder else None
        self._model = model
        self._complaint = complaint
        self._is_finished = is_finished
        self._beats = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)
        if self._path:
            self._thread.start()

    def close(self) -> None:
        """The process may end from now on."""
        self._closing.set()
        if self._path:
            self._thread.join()
            self._path.unlink(missing_ok=True)

    def _loop(self) -> None:
        assert self._path
        with self._path.open("wb", buffering=0) as file:
            while True:
                os.pwrite(file.fileno(), self._beat(), 0)
                if self._closing.wait(_INTERVAL_SECONDS):
                    return

    def _beat(self) -> bytes:
        self._beats += 1
        beat = {
            "model": self._model,
            "pid": os.getpid(),
            "beats": self._beats,
            "complaint": (self._complaint() or "")[:_LONGEST_COMPLAINT],
            "finished": self._is_finished(),
        }
        return json.dumps(beat).encode().ljust(_BYTES)
