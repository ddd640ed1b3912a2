"""Runs tritonserver as a child: passes signals on, reaps, and ends it when it or a model's process is dead or stuck."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from triton_chat_server.serve import flags
from triton_chat_server.supervise import heartbeats, processes
from triton_chat_server.supervise.liveness import Liveness
from triton_chat_server.supervise.verdicts import Verdicts

log = logging.getLogger("serve")

_LOOK_S = 0.5
_STOP_MARGIN_S = 3.0
_IDLE_S = 3.0
_STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
_HELD = _STOPPING | {signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD}
_PREFIX = "shm-region-prefix-name="


def supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs it to its end. 0 after SIGTERM or SIGINT, where it ends in time.

    Otherwise the last line of the log says why: tritonserver's own exit code (128 + n for signal n), and 1 where it has
    ended although nobody asked, or had to be ended.
    """
    command, prefix = _with_prefix(command)
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    processes.adopt_orphans()
    with heartbeats.folder() as folder:
        server = processes.spawn(command, {**environment, heartbeats.FOLDER_VARIABLE: str(folder)})
        try:
            return _Supervisor(server, folder, command).run()
        finally:
            processes.end_group(server)
            processes.remove_shared_memory(prefix)


class _Supervisor:
    def __init__(self, server: int, folder: Path, command: Sequence[str]) -> None:
        self._server = server
        self._folder = folder
        self._verdicts = Verdicts()
        self._liveness = Liveness.of(command)
        self._exit_s = float(flags.last("exit-timeout-secs", command, "30")) + _STOP_MARGIN_S
        self._stop: _Stop | None = None

    def run(self) -> int:
        """The exit code."""
        looked = time.monotonic()
        while True:
            self._pass_on_a_signal()
            status = processes.reap(self._server)
            if status is not None:
                return self._ended(os.waitstatus_to_exitcode(status))
            now = time.monotonic()
            if now - looked < _LOOK_S:
                continue
            code = (
                self._look(now - looked) if self._stop is None else self._stop.look(now, heartbeats.read(self._folder))
            )
            if code is not None:
                return code
            looked = now

    def _pass_on_a_signal(self) -> None:
        """Waits for one, or until it is time to look."""
        info = signal.sigtimedwait(_HELD, _LOOK_S)
        if info is None or info.si_signo == signal.SIGCHLD:
            return
        if info.si_signo in _STOPPING and self._stop is None:
            self._stop = _Stop(time.monotonic(), self._exit_s)
        os.kill(self._server, signal.SIGTERM if info.si_signo in _STOPPING else info.si_signo)

    def _look(self, elapsed: float) -> int | None:
        answers = None if self._liveness is None else self._liveness.answers
        words = self._verdicts.look(elapsed, heartbeats.read(self._folder), processes.is_alive, answers)
        if words is None:
            return None
        log.error("%s; tritonserver is ended", words)
        return 1

    def _ended(self, code: int) -> int:
        if self._stop is not None and code == 0:
            return 0
        if code < 0:
            log.error("tritonserver died of %s", signal.Signals(-code).name)
            return 128 - code
        log.error("tritonserver ended with exit code %d%s", code, "" if self._stop else ", although nobody asked")
        return code or 1


class _Stop:
    """A stop that was asked for.

    tritonserver 24.10 never ends while a client keeps a stream open, nor after one that it refused itself and whose
    client left, and waits for its whole exit timeout after a stream that was never read.
    """

    def __init__(self, now: float, limit_s: float) -> None:
        self._limit_s = limit_s
        self._by = now + limit_s
        self._idle_since: float | None = None

    def look(self, now: float, models: Sequence[heartbeats.Heartbeat]) -> int | None:
        """The exit code, once it has to be ended. Where all models have finished, no request is left to wait for."""
        if not all(model.finished for model in models):
            self._idle_since = None
        else:
            self._idle_since = self._idle_since or now
            if now - self._idle_since >= _IDLE_S:
                log.info("all models have finished, but tritonserver goes on; it is ended")
                return 0
        if now < self._by:
            return None
        log.error("tritonserver has not stopped within %.0f s; it is ended", self._limit_s)
        return 1


def _with_prefix(command: Sequence[str]) -> tuple[list[str], str]:
    """The command and the prefix of the names of its shared memory, by which it can be found again."""
    for value in flags.values("backend-config", command):
        backend, _, setting = value.partition(",")
        if backend == "python" and setting.startswith(_PREFIX):
            return list(command), setting.removeprefix(_PREFIX)
    prefix = f"triton_chat_{secrets.token_hex(6)}_"
    return [*command, f"--backend-config=python,{_PREFIX}{prefix}"], prefix
