"""tritonserver as the command `triton-chat-server serve` starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from local import command, install, readiness
from local.options import CACHE, DEFAULT_MODEL, TritonOptions
from local.process import KeptProcess
from local.service import STOP_MARGIN_S
from local.triton import LocalTriton

SERVER = [sys.executable, "-m", "triton_chat_server"]


class ServedTriton(LocalTriton):
    """Only the launch differs: what the container does. `expected` are the models that must become ready."""

    def __init__(self, folder: Path, expected: Sequence[str], options: Sequence[str], env: Mapping[str, str]) -> None:
        super().__init__(
            TritonOptions(
                http_port=0, grpc_port=0, metrics_port=0,
                log_path=folder / "tritonserver.log", ready_timeout_s=120.0, exit_timeout_s=10,
            )
        )  # fmt: skip
        self._expected = expected
        self._given = options
        self._env = env

    def _spawn(self) -> KeptProcess:
        found = install.prepare(CACHE)
        options = replace(self.options, model=self._env.get("TRITON_CHAT_MODEL"))
        environment = command.server_environment(options, found, os.environ) | dict(self._env)
        environment["PATH"] = f"{found.binary.parent}:{environment['PATH']}"
        flags = [
            "--device", "cpu",
            f"--repository={self.options.repository}",
            f"--backend-directory={found.backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            f"--http-port={self.options.http_port}",
            "--grpc-port", str(self.options.grpc_port),
            f"--metrics-port={self.options.metrics_port}",
            "--exit-timeout-secs=10",
        ]  # fmt: skip
        return KeptProcess(
            [*SERVER, "serve", *flags, *self._given],
            environment,
            self.options.log_path,
            self.options.exit_timeout_s + STOP_MARGIN_S,
            shm_prefix=self._shm_prefix,
        )

    def _answers(self) -> bool:
        return readiness.http_ready(self.http_url, self._expected)


def probe(server: LocalTriton, what: str, *options: str) -> tuple[int, str]:
    """Exit code and the line that says why."""
    urls = ["--http", server.http_url, "--metrics", server.metrics_url]
    done = subprocess.run([*SERVER, "probe", what, *urls, *options], capture_output=True, text=True, check=False)
    assert not done.stdout
    return done.returncode, done.stderr.strip()


TINY = {"model": str(DEFAULT_MODEL), "threads": 1, "max_sequences": 2, "max_step_tokens": 64}
"""Engine settings that load in seconds."""
