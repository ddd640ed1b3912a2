"""The OpenAI-compatible gateway on this machine, in front of any Triton."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from local import ports, preflight, readiness
from local.options import GatewayOptions
from local.preflight import Problem
from local.process import KeptProcess
from local.service import STOP_MARGIN_S, LocalService


class LocalGateway(LocalService):
    """`triton_url` is the gRPC address that it passes requests on to."""

    name = "gateway"
    options: GatewayOptions

    def __init__(self, options: GatewayOptions, triton_url: str, after: LocalService | None = None) -> None:
        super().__init__(after)
        (port,) = ports.choose(options.host, (options.port,))
        self.options = replace(options, port=port)
        self.triton_url = triton_url

    @property
    def url(self) -> str:
        return f"http://{self._client_host}:{self.options.port}"

    @property
    def openai_url(self) -> str:
        """`base_url` of OpenAI's clients."""
        return f"{self.url}/v1"

    @property
    def metrics_url(self) -> str:
        return f"{self.url}/metrics"

    def problems(self) -> list[Problem]:
        return preflight.before_door("gateway", "GATEWAY_PORT", self.options.host, self.options.port)

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The user's own TRITON_CHAT_GATEWAY_* pass through; what this launcher decides comes on top."""
        decided = {
            "TRITON_CHAT_GATEWAY_HOST": self.options.host,
            "TRITON_CHAT_GATEWAY_PORT": str(self.options.port),
            "TRITON_CHAT_GATEWAY_TRITON_URL": self.triton_url,
            "TRITON_CHAT_GATEWAY_DRAIN_TIMEOUT": str(self.options.exit_timeout_s),
            "PYTHONUNBUFFERED": "1",  # a killed gateway's last words reach the log
        }
        return {**inherited, **decided, **self.options.extra_env}

    def is_live(self) -> bool:
        return readiness.answers(f"{self.url}/health/live")

    def _spawn(self) -> KeptProcess:
        return KeptProcess(
            [sys.executable, "-m", "chat_gateway"],
            self.environment(os.environ),
            self.options.log_path,
            self.options.exit_timeout_s + STOP_MARGIN_S,
        )

    def _answers(self) -> bool:
        return readiness.answers(f"{self.url}/health/ready")
