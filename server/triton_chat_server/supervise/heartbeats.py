"""Heartbeats: a file for each model's process, which it writes anew twice a second. See `triton_io/heartbeat.py`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FOLDER_VARIABLE = "TRITON_CHAT_HEARTBEATS"
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton and its models share memory; a disk may be slow, or read-only


@dataclass(frozen=True)
class Heartbeat:
    """What a process last said.

    Attributes:
        model: its name.
        pid: of the process, in the namespace of this one.
        beats: how often it has said something.
        complaint: why it does not work, empty while it does.
        finished: whether a server that stops need not wait for it.
    """

    model: str
    pid: int
    beats: int
    complaint: str
    finished: bool


_FIELDS = tuple(Heartbeat.__dataclass_fields__)
"""Models of another version may tell more."""


@contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A new folder, in memory where that can be written; removed at the end."""
    parent = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix=f"{prefix}heartbeats_", dir=parent, ignore_cleanup_errors=True) as made:
        yield Path(made)


def read(folder: Path) -> list[Heartbeat]:
    """Of all processes that have not ended normally."""
    return [heartbeat for path in folder.glob("*.json") if (heartbeat := _read(path))]


def _read(path: Path) -> Heartbeat | None:
    """None for a file that is gone, or is written at this moment."""
    try:
        told = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return Heartbeat(**{name: told[name] for name in _FIELDS})
