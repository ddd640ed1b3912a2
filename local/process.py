"""A process that cannot outlive this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from local import keeper


class KeptProcess:
    """A process behind its keeper: it ends when told to, and also when this process is killed.

    Args:
        exit_timeout_s: between SIGTERM and SIGKILL.
        shm_prefix: of the shared memory that the process may leave behind.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        exit_timeout_s: float,
        shm_prefix: str | None = None,
    ) -> None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        cleaning = ["--shared-memory", shm_prefix] if shm_prefix else []
        self._keeper = subprocess.Popen(
            [sys.executable, "-IS", keeper.__file__, *cleaning, str(log_path), str(exit_timeout_s), *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        with self._keeper.stdout as answer:
            self.pid = int(answer.readline())
        """Its children are in the session of this id."""

    def poll(self) -> int | None:
        """The exit code (128 + n for signal n), or None while the process runs."""
        return self._keeper.poll()

    def stop(self) -> int:
        """Lets it finish within its exit timeout. Returns the exit code; safe to call twice."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        return self._keeper.wait()

    def kill(self) -> int:
        """SIGKILL to the process; its keeper ends its children. Returns the exit code."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        return self._keeper.wait()
