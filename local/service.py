"""What all servers on this machine have in common, and how several of them start and stop together."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import ClassVar, Self

from local import readiness
from local.options import ServiceOptions
from local.preflight import Problem
from local.process import KeptProcess

POLL_S = 0.1
STOP_MARGIN_S = 6.0
"""A server gets this much longer than its own exit timeout before it is killed."""


class ServerError(RuntimeError):
    """A server did not start, or died; the message ends with the last lines of its log."""


class LocalService(ABC):
    """A server as a context manager: ready inside the block, gone after it, also when this process is killed."""

    name: ClassVar[str]
    options: ServiceOptions

    def __init__(self, after: LocalService | None = None) -> None:
        """`after` is another one without which it cannot be ready: it is not asked before, and its time begins then."""
        self._after = after
        self.stage = "starting"
        """What it is doing, in words for a person."""
        self.ready_after_s: float | None = None
        self._process: KeptProcess | None = None
        self._launched_at: float | None = None

    @property
    def servers(self) -> tuple[LocalService, ...]:
        return (self,)

    @property
    def title(self) -> str:
        """Its name, and what a person wants to know of it from the start."""
        return self.name

    @property
    def is_started(self) -> bool:
        """True also after its end."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Its children are in the session of this id."""
        return self._kept.pid

    @property
    def seconds(self) -> float:
        """From its launch until it was ready, or until now."""
        if self._launched_at is None:
            return 0.0
        return time.monotonic() - self._launched_at if self.ready_after_s is None else self.ready_after_s

    def start(self) -> None:
        """Returns when the server is ready. Raises ServerError when it does not get there."""
        start_together(self.servers)

    def poll(self) -> int | None:
        """The exit code (128 + n for signal n), or None while the server runs."""
        return self._kept.poll()

    def stop(self) -> int:
        """Lets running requests finish within the exit timeout. Returns the exit code; safe to call twice."""
        return self._kept.stop()

    def kill(self) -> int:
        """SIGKILL to the server and its children. Returns the exit code."""
        return self._kept.kill()

    def log_tail(self, lines: int = 25) -> str:
        return readiness.last_lines(readiness.read_log(self.options.log_path), lines)

    @abstractmethod
    def problems(self) -> list[Problem]:
        """What would stop it from starting on this machine."""

    def launch(self) -> None:
        """Returns at once; `is_ready` tells how far it has come."""
        assert not self.is_started, "started twice"
        self.options.log_path.unlink(missing_ok=True)
        self._launched_at = time.monotonic()
        self._process = self._spawn()

    def launch_again(self) -> None:
        """After its end: as `launch`; its log goes on."""
        assert self.poll() is not None, "it still runs"
        self.stage, self.ready_after_s = "starting", None
        self._launched_at = time.monotonic()
        self._process = self._spawn()

    def is_ready(self) -> bool:
        """True once it answers. Raises ServerError when it has died before, or takes too long."""
        code = self.poll()
        if code is not None:
            self.stage = f"ended with exit code {code}"
            raise self._error(f"{self.name} stopped while starting (exit code {code})")
        if self.ready_after_s is None:
            self._look()
        return self.ready_after_s is not None

    def is_live(self) -> bool:
        """Whether one that has been ready still answers, be it that it is not ready. Its process is looked at apart."""
        return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop_together(self.servers)

    def _look(self) -> None:
        if self._after is not None and self._after.ready_after_s is None:
            self.stage = f"waiting for {self._after.name}"
        elif self._answers():
            self.ready_after_s = self.seconds
            self.stage = "ready"
        elif self.seconds > self._waited_s() + self.options.ready_timeout_s:
            raise self._error(f"{self.name} was not ready within {self.options.ready_timeout_s:.0f} s")
        else:
            self.stage = self._stage()

    def _waited_s(self) -> float:
        return (self._after.ready_after_s or 0.0) if self._after is not None else 0.0

    @abstractmethod
    def _spawn(self) -> KeptProcess: ...

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it says that it is ready."""

    def _stage(self) -> str:
        return "starting"

    def _complaints(self, log: str) -> str:
        """The part of its log that tells why it did not start."""
        return log

    @property
    def _kept(self) -> KeptProcess:
        assert self._process is not None, "not started"
        return self._process

    @property
    def _client_host(self) -> str:
        """As it stands in a URL. Of the wildcards both are open to IPv4."""
        host = self.options.host
        if host in ("0.0.0.0", "::"):  # noqa: S104 - compares only
            return "127.0.0.1"
        return f"[{host}]" if ":" in host else host

    def _error(self, what: str) -> ServerError:
        complaints = self._complaints(readiness.read_log(self.options.log_path))
        return ServerError(f"{what}; from {self.options.log_path}:\n{readiness.last_lines(complaints, 25)}")


def start_together(servers: Sequence[LocalService]) -> None:
    """Returns when all are ready. Raises ServerError, with none of them left, when one does not get there."""
    try:
        for server in servers:
            server.launch()
        # All are asked each time: one that was ready may have died since.
        while sum(server.is_ready() for server in servers) < len(servers):
            time.sleep(POLL_S)
    except BaseException:
        stop_together(servers)
        raise


def stop_together(servers: Sequence[LocalService]) -> None:
    """Stops those that have been started, the last one first. Ctrl-C meanwhile kills all that are left."""
    started = [server for server in reversed(servers) if server.is_started]
    try:
        for server in started:
            server.stop()
    except KeyboardInterrupt:
        for server in started:
            server.kill()
