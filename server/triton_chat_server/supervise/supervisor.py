"""Runs tritonserver as a child: passes signals on, reaps, and ends it when it or a model's process is dead or stuck."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from triton_chat_server.serve import flags
from triton_chat_server.supervise import heartbeats, processes
from triton_chat_server.supervise.heartbeats import Heartbeat
from triton_chat_server.supervise.liveness import Liveness
from triton_chat_server.supervise.verdicts import SILENT_S, Verdicts

log = logging.getLogger("serve")

SILENT_VARIABLE = "TRITON_CHAT_SILENT_SECONDS"
_LOOK_S = 0.5
_EXIT_S = "30"  # tritonserver's own default
_STOP_MARGIN_S = 3.0
_FINISHED_S = 3.0
_STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
_TICK = signal.SIGALRM
_HELD = _STOPPING | {signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, _TICK}
_PREFIX = "shm-region-prefix-name="


@contextmanager
def held_signals() -> Iterator[None]:
    """Signals wait until `supervise` takes them; the first process of a container would lose them.

    Where the block ends with an error, they count again as before. Otherwise the process is at its end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise


def supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs it to its end. 0 after SIGTERM or SIGINT, where it ends in time.

    Otherwise the last line of the log says why: tritonserver's own exit code (128 + n for signal n), and 1 where it has
    ended although nobody asked, or had to be ended.
    """
    command, prefix = _with_prefix(command)
    processes.adopt_orphans()
    with held_signals(), heartbeats.folder(prefix) as folder:
        server = processes.spawn(command, {**environment, heartbeats.FOLDER_VARIABLE: str(folder)})
        try:
            return _Supervisor(server, folder, command, _seconds(environment.get(SILENT_VARIABLE), SILENT_S)).run()
        finally:
            try:
                processes.end_group(server)
            finally:
                processes.remove_shared_memory(prefix)


class _Supervisor:
    def __init__(self, server: int, folder: Path, command: Sequence[str], silent_s: float) -> None:
        self._server = server
        self._folder = folder
        self._verdicts = Verdicts(silent_s)
        self._liveness = Liveness.of(command)
        self._answered = False
        self._exit_s = _seconds(flags.last("exit-timeout-secs", command, _EXIT_S), float(_EXIT_S)) + _STOP_MARGIN_S
        self._models = frozenset(_models(command))
        self._seen: set[str] = set()
        """Models that have sent a heartbeat."""
        self._stop: _Stop | None = None

    def run(self) -> int:
        """The exit code."""
        looked = time.monotonic()
        with _ticks(_LOOK_S):
            while True:
                self._pass_on_a_signal()
                status = processes.reap(self._server)
                if status is not None:
                    return self._ended(os.waitstatus_to_exitcode(status))
                now = time.monotonic()
                if now - looked >= _LOOK_S:
                    if (code := self._look(now, now - looked)) is not None:
                        return code
                    looked = now

    def _pass_on_a_signal(self) -> None:
        """Waits for one, or until it is time to look."""
        number = signal.sigwait(_HELD)
        if number in (_TICK, signal.SIGCHLD):
            return
        if number in _STOPPING and self._stop is None:
            self._read()  # who ends normally is soon no longer seen
            self._stop = _Stop(time.monotonic(), self._exit_s, asked=True)
        os.kill(self._server, signal.SIGTERM if number in _STOPPING else number)

    def _look(self, now: float, elapsed: float) -> int | None:
        """The exit code, once the server has to be ended."""
        beats = self._read()
        state = self._liveness.state if self._liveness else "closed"
        self._answered |= state == "answers"
        if self._stop is None and self._answered and state == "closed":
            log.warning("tritonserver is stopping, although nobody asked")
            self._stop = _Stop(now, self._exit_s, asked=False)
        answers = None if state == "closed" or self._stop else state == "answers"
        if words := self._verdicts.look(elapsed, beats, processes.is_alive, answers):
            log.error("%s; ending the server", words)
            return 1
        if self._stop is None:
            return None
        all_known = bool(self._models) and self._models <= self._seen
        return self._stop.look(now, all_known and all(beat.finished for beat in beats))

    def _read(self) -> list[Heartbeat]:
        beats = heartbeats.read(self._folder)
        self._seen |= {beat.model for beat in beats}
        return beats

    def _ended(self, code: int) -> int:
        asked = self._stop is not None and self._stop.asked
        if asked and code == 0:
            return 0
        if code < 0:
            log.error("tritonserver died of %s", _name_of(-code))
            return 128 - code
        log.error("tritonserver ended with exit code %d%s", code, "" if asked else ", although nobody asked")
        return code or 1


class _Stop:
    """A server that stops. `asked`: by a signal, and not because it or a model failed.

    tritonserver 24.10 never ends while a client keeps a stream open, nor after one that it refused itself and whose
    client left, and waits for its whole exit timeout after a stream that was never read.
    """

    def __init__(self, now: float, limit_s: float, *, asked: bool) -> None:
        self.asked = asked
        self._limit_s = limit_s
        self._by = now + limit_s
        self._finished_since: float | None = None

    def look(self, now: float, finished: bool) -> int | None:
        """The exit code, once it has to be ended. `finished`: no model has a request left to wait for."""
        self._finished_since = (self._finished_since or now) if finished else None
        if self._finished_since is not None and now - self._finished_since >= _FINISHED_S:
            log.info("all models have finished, but tritonserver goes on; ending the server")
            return 0 if self.asked else 1
        if now < self._by:
            return None
        log.error("tritonserver has not stopped within %.0f s; ending the server", self._limit_s)
        return 1


@contextmanager
def _ticks(seconds: float) -> Iterator[None]:
    """Sends this process `_TICK` each so many seconds. All its threads must hold that signal, as `held_signals` has it.

    A time limit of `sigtimedwait` would be simpler, but after a pause that outlasts it CPython 3.11 returns whatever
    lies in memory there: often SIGHUP, of which tritonserver would die.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        while _TICK in signal.sigpending():
            signal.sigwait({_TICK})


def _models(command: Sequence[str]) -> Collection[str]:
    """Those that it loads at its start, as far as that is known."""
    if flags.last("model-control-mode", command, "none") == "explicit":
        return frozenset(flags.values("load-model", command))
    folders = (*flags.values("model-repository", command), *flags.values("model-store", command))
    return frozenset(config.parent.name for folder in folders for config in Path(folder).glob("*/config.pbtxt"))


def _with_prefix(command: Sequence[str]) -> tuple[list[str], str]:
    """The command and the prefix of the names of its shared memory, by which it can be found again."""
    for value in flags.values("backend-config", command):
        backend, _, setting = value.partition(",")
        if backend == "python" and setting.startswith(_PREFIX):
            return list(command), setting.removeprefix(_PREFIX)
    prefix = f"triton_chat_{secrets.token_hex(6)}_"
    return [*command, f"--backend-config=python,{_PREFIX}{prefix}"], prefix


def _seconds(text: str | None, default: float) -> float:
    """What is no number of seconds is for tritonserver to refuse."""
    try:
        return float(text) if text else default
    except ValueError:
        return default


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
