"""The OpenAI-compatible gateway on this machine, in front of any Triton."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from local import ports, preflight, readiness
from local.preflight import Problem
from local.process import KeptProcess
from local.server import STOP_MARGIN_S, LocalServer
from local.settings import GatewaySettings


class LocalGateway(LocalServer):
    """`triton_url` is the gRPC address that it passes requests on to."""

    name = "gateway"
    settings: GatewaySettings

    def __init__(self, settings: GatewaySettings, triton_url: str, after: LocalServer | None = None) -> None:
        super().__init__(after)
        (port,) = ports.choose(settings.host, (settings.port,))
        self.settings = replace(settings, port=port)
        self.triton_url = triton_url

    @property
    def url(self) -> str:
        return f"http://{self._client_host}:{self.settings.port}"

    @property
    def openai_url(self) -> str:
        """`base_url` of OpenAI's clients."""
        return f"{self.url}/v1"

    @property
    def metrics_url(self) -> str:
        return f"{self.url}/metrics"

    def problems(self) -> list[Problem]:
        return preflight.before_door("gateway", "GATEWAY_PORT", self.settings.host, self.settings.port)

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The user's own TRITON_CHAT_GATEWAY_* pass through; what this launcher decides comes on top."""
        decided = {
            "TRITON_CHAT_GATEWAY_HOST": self.settings.host,
            "TRITON_CHAT_GATEWAY_PORT": str(self.settings.port),
            "TRITON_CHAT_GATEWAY_TRITON_URL": self.triton_url,
            "TRITON_CHAT_GATEWAY_DRAIN_TIMEOUT": str(self.settings.exit_timeout_s),
            "PYTHONUNBUFFERED": "1",  # a killed gateway's last words reach the log
        }
        return {**inherited, **decided, **self.settings.extra_env}

    def _spawn(self) -> KeptProcess:
        return KeptProcess(
            [sys.executable, "-m", "chat_gateway"],
            self.environment(os.environ),
            self.settings.log_path,
            self.settings.exit_timeout_s + STOP_MARGIN_S,
        )

    def _answers(self) -> bool:
        return readiness.answers(f"{self.url}/health/ready")
