"""One tritonserver on this machine, from start to a clean stop."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from local import backend, command, keeper, ports, readiness
from local.settings import CACHE, TritonSettings

POLL_S = 0.1
STOP_MARGIN_S = 3.0
"""tritonserver gets this much longer than its own exit timeout before it is killed."""

Progress = Callable[[str], None]


class TritonError(RuntimeError):
    """The server did not start, or died; the message ends with the last lines of its log."""


class LocalTriton:
    """A tritonserver as a context manager: ready inside the block, gone after it, also when this process is killed."""

    def __init__(self, settings: TritonSettings, on_progress: Progress | None = None) -> None:
        http, grpc, metrics = ports.choose(settings.host, settings.ports)
        self.settings = replace(settings, http_port=http, grpc_port=grpc, metrics_port=metrics)
        self.on_progress = on_progress
        self._shm_prefix = f"triton_chat_{secrets.token_hex(6)}_"
        self._keeper: subprocess.Popen[str] | None = None
        self._pid = 0

    @property
    def http_url(self) -> str:
        return f"http://{self._client_host}:{self.settings.http_port}"

    @property
    def grpc_address(self) -> str:
        """host:port, as gRPC clients want it."""
        return f"{self._client_host}:{self.settings.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._client_host}:{self.settings.metrics_port}/metrics"

    @property
    def is_started(self) -> bool:
        """True also after its end."""
        return self._keeper is not None

    @property
    def pid(self) -> int:
        """Of tritonserver, which is the leader of the process group that its stubs are in."""
        assert self._keeper is not None, "not started"
        return self._pid

    def start(self) -> None:
        """Returns when the server and its models are ready. Raises TritonError when they do not get there."""
        assert self._keeper is None, "started twice"
        install = backend.prepare(CACHE)
        gpu = command.gpu_visible(os.environ)
        self._spawn(
            command.server_command(self.settings, install, gpu, self._shm_prefix),
            command.server_environment(self.settings, install, os.environ),
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """The exit code (128 + n for signal n), or None while the server runs."""
        assert self._keeper is not None, "not started"
        return self._keeper.poll()

    def stop(self) -> int:
        """Lets running requests finish within the exit timeout. Returns the exit code; safe to call twice.

        Ctrl-C while it waits kills the server at once.
        """
        assert self._keeper is not None, "not started"
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            return self._keeper.wait()
        except KeyboardInterrupt:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL to the server and its stubs. Returns the exit code."""
        assert self._keeper is not None, "not started"
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
        return self._keeper.wait()

    def log_tail(self, lines: int = 25) -> str:
        return readiness.last_lines(readiness.read_log(self.settings.log_path), lines)

    def __enter__(self) -> LocalTriton:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _client_host(self) -> str:
        return "127.0.0.1" if self.settings.host == "0.0.0.0" else self.settings.host  # noqa: S104 - compares only

    def _spawn(self, server: list[str], environment: dict[str, str]) -> None:
        log_path = self.settings.log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        timeout_s = self.settings.exit_timeout_s + STOP_MARGIN_S
        self._keeper = subprocess.Popen(
            [
                sys.executable,
                "-IS",
                str(Path(keeper.__file__)),
                str(log_path),
                self._shm_prefix,
                str(timeout_s),
                *server,
            ],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        with self._keeper.stdout as answer:
            self._pid = int(answer.readline())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.settings.ready_timeout_s
        models = self.settings.models or readiness.models_in(self.settings.repository)
        while not readiness.http_ready(self.http_url, models):
            code = self.poll()
            if code is not None:
                raise self._error(f"tritonserver stopped while starting (exit code {code})")
            if time.monotonic() > deadline:
                raise self._error(f"tritonserver was not ready within {self.settings.ready_timeout_s:.0f} s")
            if self.on_progress is not None:
                self.on_progress(readiness.stage(readiness.read_log(self.settings.log_path)))
            time.sleep(POLL_S)

    def _error(self, what: str) -> TritonError:
        complaints = readiness.complaints(readiness.read_log(self.settings.log_path))
        return TritonError(f"{what}; from {self.settings.log_path}:\n{readiness.last_lines(complaints, 25)}")
