"""The chat page on this machine, over any gateway."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace

from local import ports, preflight, readiness
from local.options import ROOT, PageOptions
from local.preflight import Problem
from local.process import KeptProcess
from local.service import STOP_MARGIN_S, LocalService


class LocalPage(LocalService):
    """`gateway_url` is the gateway's own address, without /v1."""

    name = "page"
    options: PageOptions

    def __init__(self, options: PageOptions, gateway_url: str) -> None:
        super().__init__()
        (port,) = ports.choose(options.host, (options.port,))
        self.options = replace(options, port=port)
        self.gateway_url = gateway_url

    @property
    def url(self) -> str:
        return f"http://{self._client_host}:{self.options.port}"

    def problems(self) -> list[Problem]:
        return preflight.before_door("ui", "UI_PORT", self.options.host, self.options.port)

    def command(self) -> list[str]:
        """What else streamlit is told stands in ui/.streamlit/config.toml."""
        script = ROOT / "ui" / "app.py"
        address = (f"--server.address={self.options.host}", f"--server.port={self.options.port}")
        return [sys.executable, "-m", "streamlit", "run", str(script), *address]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        decided = {"TRITON_CHAT_UI_GATEWAY_URL": self.gateway_url, "PYTHONUNBUFFERED": "1"}
        return {**inherited, **decided, **self.options.extra_env}

    def is_live(self) -> bool:
        return self._answers()

    def _spawn(self) -> KeptProcess:
        return KeptProcess(
            self.command(),
            self.environment(os.environ),
            self.options.log_path,
            self.options.exit_timeout_s + STOP_MARGIN_S,
        )

    def _answers(self) -> bool:
        return readiness.answers(f"{self.url}/_stcore/health")
