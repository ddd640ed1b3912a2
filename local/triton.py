"""One tritonserver on this machine, under its supervisor, from start to a clean stop."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path

from local import command, install, ports, preflight, readiness
from local.options import CACHE, TritonOptions
from local.preflight import Problem
from local.process import KeptProcess
from local.service import STOP_MARGIN_S, LocalService
from triton_chat_server.serve.gpu import gpu_visible


class LocalTriton(LocalService):
    name = "tritonserver"
    options: TritonOptions

    def __init__(self, options: TritonOptions) -> None:
        super().__init__()
        http, grpc, metrics = ports.choose(options.host, options.ports)
        self.options = replace(options, http_port=http, grpc_port=grpc, metrics_port=metrics)
        self._shm_prefix = f"triton_chat_{secrets.token_hex(6)}_"

    @property
    def title(self) -> str:
        return f"{self.name} with {self.options.model_name}{' on vLLM' if self._on_vllm else ''}"

    @property
    def http_url(self) -> str:
        return f"http://{self._client_host}:{self.options.http_port}"

    @property
    def grpc_address(self) -> str:
        """host:port, as gRPC clients want it."""
        return f"{self._client_host}:{self.options.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._client_host}:{self.options.metrics_port}/metrics"

    @property
    def _client_host(self) -> str:
        return "[::1]" if self.options.host == "::" else super()._client_host  # its HTTP is not open to both families

    @property
    def server_pid(self) -> int:
        """Of tritonserver itself, the child of its supervisor."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        (pid,) = (int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "tritonserver\n")
        return pid

    def problems(self) -> list[Problem]:
        found = preflight.before_start(self.options.host, self.options.ports, os.environ)
        if self._on_vllm:
            found += preflight.before_vllm(self.options.python_environment)
        return found

    def _spawn(self) -> KeptProcess:
        found = install.prepare(CACHE)
        gpu = gpu_visible(os.environ) and not self._on_vllm  # its environment here has the build for CPUs
        return KeptProcess(
            command.server_command(self.options, found, gpu, self._shm_prefix),
            command.server_environment(self.options, found, os.environ),
            self.options.log_path,
            self.options.exit_timeout_s + STOP_MARGIN_S,
            shm_prefix=self._shm_prefix,
        )

    def _answers(self) -> bool:
        models = self.options.models or readiness.models_in(self.options.repository)
        return readiness.http_ready(self.http_url, models) and readiness.answers(self.metrics_url)

    @property
    def _on_vllm(self) -> bool:
        return self.options.engine == "vllm"

    def _stage(self) -> str:
        return readiness.stage(readiness.read_log(self.options.log_path))

    def _complaints(self, log: str) -> str:
        return readiness.complaints(log)
