"""tritonserver and what it leaves behind: a group of processes, and regions of shared memory."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)
_POLL_S = 0.1
_NOT_RUN = 127  # as a shell has it


def adopt_orphans() -> None:
    """From now on the children of a child that dies become this process's, as they are in a container."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def spawn(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Starts it as the leader of a new group; it dies with this process, and gets all signals that this one holds.

    Without `subprocess`, which would wait for the child behind the back of `reap`.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvpe(command[0], list(command), environment)  # noqa: S606 - it is what this program is for
    except OSError as error:
        os.write(2, f"{command[0]} cannot be run: {error.strerror}\n".encode())
    finally:
        os._exit(_NOT_RUN)


def end_group(group: int, within_s: float = 5.0) -> None:
    """SIGKILL to all of a group: a server whose model is stuck would not end on less. Waits for them.

    Not for ever: one that the driver of a device holds cannot be killed.
    """
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            reap(group)
            os.killpg(group, 0)  # raises once all are gone
            signal.sigtimedwait({signal.SIGCHLD}, _POLL_S)


def is_alive(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def reap(server: int) -> int | None:
    """Waits for all children that have ended. The wait status of `server`, if it is among them."""
    found = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == server:
                found = status
    return found


def remove_shared_memory(prefix: str) -> None:
    """Removes the regions that a killed server could not."""
    for region in _SHARED_MEMORY.glob(prefix + "*"):
        if not region.is_dir():
            region.unlink(missing_ok=True)
