"""Which requests of other models nobody waits for any more, told to `chat` by files.

Before 25.04 Triton cannot cancel a request from model to model, which then runs to its end for nobody. So a model that
forwards gives its request a name, and once the caller has left it leaves a file of that name in a folder that the
models of one server share; `chat` looks for it where it asks Triton who has cancelled.
"""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from triton_io.heartbeat import FOLDER_VARIABLE

# Of memory, and writable wherever the Python backend runs: it keeps its tensors there. The supervisor's goes with it.
_OWN = os.environ.get(FOLDER_VARIABLE)
_FOLDER = Path(_OWN or "/dev/shm") / f"triton_chat_abandoned_{os.getppid()}"  # noqa: S108 - nobody can guess the names
_NAME = re.compile(r"forwarded-[0-9a-f]{32}")


def new_name() -> str:
    """For a request to `chat`: nobody can guess it."""
    return f"forwarded-{uuid.uuid4().hex}"


def note(name: str) -> None:
    """Nobody waits for that request any more. Where the file cannot be written, the request runs to its end."""
    with suppress(OSError):
        _FOLDER.mkdir(mode=0o700, exist_ok=True)
        (_FOLDER / name).touch()


def forget(name: str) -> None:
    """That request has ended."""
    with suppress(OSError):
        (_FOLDER / name).unlink(missing_ok=True)
        _FOLDER.rmdir()  # if it is empty


def mark_of(name: str) -> Path | None:
    """The file that is there once nobody waits for a request of that name; None for one of a caller's own."""
    return _FOLDER / name if _NAME.fullmatch(name) else None
