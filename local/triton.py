"""One tritonserver on this machine, from start to a clean stop."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace

from local import backend, command, ports, preflight, readiness
from local.preflight import Problem
from local.process import KeptProcess
from local.server import STOP_MARGIN_S, LocalServer
from local.settings import CACHE, TritonSettings
from triton_chat_server.serve.gpu import gpu_visible


class LocalTriton(LocalServer):
    name = "tritonserver"
    settings: TritonSettings

    def __init__(self, settings: TritonSettings) -> None:
        super().__init__()
        http, grpc, metrics = ports.choose(settings.host, settings.ports)
        self.settings = replace(settings, http_port=http, grpc_port=grpc, metrics_port=metrics)
        self._shm_prefix = f"triton_chat_{secrets.token_hex(6)}_"

    @property
    def title(self) -> str:
        return f"{self.name} with {self.settings.model_name}"

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
    def _client_host(self) -> str:
        return "[::1]" if self.settings.host == "::" else super()._client_host  # its HTTP is not open to both families

    def problems(self) -> list[Problem]:
        return preflight.before_start(self.settings.host, self.settings.ports, os.environ)

    def _spawn(self) -> KeptProcess:
        install = backend.prepare(CACHE)
        gpu = gpu_visible(os.environ)
        return KeptProcess(
            command.server_command(self.settings, install, gpu, self._shm_prefix),
            command.server_environment(self.settings, install, os.environ),
            self.settings.log_path,
            self.settings.exit_timeout_s + STOP_MARGIN_S,
            shm_prefix=self._shm_prefix,
        )

    def _answers(self) -> bool:
        models = self.settings.models or readiness.models_in(self.settings.repository)
        return readiness.http_ready(self.http_url, models)

    def _stage(self) -> str:
        return readiness.stage(readiness.read_log(self.settings.log_path))

    def _complaints(self, log: str) -> str:
        return readiness.complaints(log)
