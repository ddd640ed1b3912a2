"""The stack that the faults happen to, and ways to bring them about."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from local import restarts
from local.options import DEFAULT_MODEL, GatewayOptions, PageOptions, StackOptions, TritonOptions
from local.stack import LocalStack
from tests.integration.servers import EMBEDDINGS_MODEL, REPOSITORY, engine_file

FAULTY_RUNNER = """

import pathlib
import time

from chat_engine.native.model_runner import ModelRunner

_run = ModelRunner.start


def _run_as_told(self, rows):
    told = pathlib.Path(os.environ["FAULT"])
    while told.exists():
        match told.read_text():
            case "sleep":
                time.sleep(0.05)
            case "spin":
                [None for _ in range(100_000)]
            case "fail":
                raise RuntimeError("out of luck")
    return _run(self, rows)


ModelRunner.start = _run_as_told
"""
"""In the engine's step: the thread sleeps, spins, or every pass fails, while a file says so."""


class KeptStack:
    """As a context manager: `servers` run, and are started again as `make serve` does it."""

    def __init__(self, folder: Path) -> None:
        self.fault = folder / "fault"
        repository = folder / "repository"
        shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"), symlinks=False)
        with (repository / "chat" / "1" / "model.py").open("a") as model:
            model.write(FAULTY_RUNNER)
        self._stack = LocalStack(
            StackOptions(
                triton=TritonOptions(
                    repository=repository, http_port=0, grpc_port=0, metrics_port=0,
                    engine_config=engine_file({"threads": 1}, folder / "engine.json"),
                    extra_env={EMBEDDINGS_MODEL: str(DEFAULT_MODEL), "FAULT": str(self.fault)},
                    log_path=folder / "tritonserver.log", exit_timeout_s=10,
                ),
                gateway=GatewayOptions(port=0, log_path=folder / "gateway.log", exit_timeout_s=5),
                page=PageOptions(port=0, log_path=folder / "page.log"),
            )
        )  # fmt: skip
        self.triton, self.gateway, self.page = self._stack.triton, self._stack.gateway, self._stack.page
        self.said: list[str] = []
        self.load_s = 0.0
        """From tritonserver's first start until it was ready."""
        self._keeping = threading.Thread(target=self._keep, daemon=True)
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        self._stack.start()
        self.load_s = self.triton.seconds
        self._keeping.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._keeping.join()
        self._stack.stop()

    def wait_until_whole(self, within: float = 120.0) -> float:
        """Until all three answer and the gateway is ready; the seconds that took."""
        began = time.monotonic()
        while not self.is_whole():
            assert time.monotonic() - began < within, "\n".join(self.said[-5:])
            time.sleep(0.05)
        return time.monotonic() - began

    def is_whole(self) -> bool:
        """Its keeper has seen it too: before, it takes a silent server for one that is still starting."""
        seen = all(server.ready_after_s is not None for server in self._stack.servers)
        return seen and self.is_ready() and status_of(f"{self.page.url}/_stcore/health") == 200

    def is_ready(self) -> bool:
        """What the gateway says."""
        return status_of(f"{self.gateway.url}/health/ready") == 200

    def _keep(self) -> None:
        """With a limit that no test reaches: each fault is one of its own, however soon it comes."""
        healthy_s, restarts.HEALTHY_S = restarts.HEALTHY_S, 0.0
        try:
            restarts.keep_running(self._stack.servers, self.said.append, self._ending)
        finally:
            restarts.HEALTHY_S = healthy_s


def status_of(url: str, body: object = None, timeout_s: float = 2.0) -> int:
    """Of a GET, or of a POST where there is a body; 0 where nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=timeout_s) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0
