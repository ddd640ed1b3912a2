"""The servers among the contenders, of one checkpoint and with the same settings.

Each gives the way in while it runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.doors import GrpcDoor, HttpDoor
from benchmarks.setting import Setting
from local import ports, readiness
from local.gateway import LocalGateway
from local.options import GatewayOptions, ServiceOptions, TritonOptions
from local.preflight import Problem
from local.process import KeptProcess
from local.service import LocalService
from local.triton import LocalTriton


@dataclass(frozen=True, kw_only=True)
class PeerOptions(ServiceOptions):
    """`command` is complete but for `--host` and `--port`."""

    command: tuple[str, ...]
    ready_timeout_s: float = 900.0
    exit_timeout_s: int = 10


class PeerServer(LocalService):
    """Somebody else's server, which answers `/health` once it is ready."""

    name = "peer"
    options: PeerOptions

    def __init__(self, options: PeerOptions) -> None:
        super().__init__()
        (self._port,) = ports.choose(options.host, (0,))
        self.options = options

    @property
    def url(self) -> str:
        return f"http://{self._client_host}:{self._port}"

    def problems(self) -> list[Problem]:
        return []

    def _spawn(self) -> KeptProcess:
        return KeptProcess(
            [*self.options.command, "--host", self.options.host, "--port", str(self._port)],
            {**os.environ, **self.options.extra_env},
            self.options.log_path,
            self.options.exit_timeout_s,
        )

    def _answers(self) -> bool:
        return readiness.answers(f"{self.url}/health")


def vllm_arguments(setting: Setting, checkpoint: Path) -> tuple[str, ...]:
    """Of `vllm serve`."""
    options = {
        "model": checkpoint,
        "served-model-name": "chat",
        "load-format": "safetensors",
        "generation-config": "vllm",
        "dtype": setting.dtype,
        "max-model-len": setting.max_model_len,
        "max-num-seqs": setting.max_sequences,
        "max-num-batched-tokens": setting.max_step_tokens,
        "block-size": setting.block_size,
        "kv-cache-memory-bytes": setting.kv_cache_bytes,
        "uvicorn-log-level": "warning",  # as the gateway's
    }
    eager = ("--enforce-eager",) if setting.enforce_eager else ()
    return (*(f"--{name}={value}" for name, value in options.items()), *eager)


def engine_settings(setting: Setting, checkpoint: Path, engine: str) -> dict[str, object]:
    """`engine.json`."""
    common: dict[str, object] = {
        "model": str(checkpoint),
        "engine": engine,
        "dtype": setting.dtype,
        "max_model_len": setting.max_model_len,
        "max_sequences": setting.max_sequences,
        "max_step_tokens": setting.max_step_tokens,
        "block_size": setting.block_size,
    }
    if engine == "vllm":
        own = {"kv_cache_memory_bytes": setting.kv_cache_bytes, "enforce_eager": setting.enforce_eager}
        return {**common, "vllm": own}
    threads = {"threads": len(setting.cpus)} if setting.cpus else {}
    return {**common, **threads, "kv_cache_tokens": setting.kv_cache_tokens}


def vllm_environment(setting: Setting) -> dict[str, str]:
    """For vLLM in either server."""
    shared = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    return shared | ({"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, setting.cpus))} if setting.cpus else {})


def stub_environment(python: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """For a tritonserver whose models are to run in another Python: it takes the first `python` on PATH."""
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    path = os.pathsep.join((str(python.parent), inherited.get("PATH", os.defpath)))
    return {"PATH": path, "PYTHONPATH": packages}


@contextmanager
def vllm_serve(setting: Setting, checkpoint: Path, folder: Path, python: Path) -> Iterator[HttpDoor]:
    """vLLM's own server; not by its command, which does not start where vLLM's build for CPUs is installed."""
    module = (str(python), "-m", "vllm.entrypoints.openai.api_server")
    options = PeerOptions(
        command=(*module, *vllm_arguments(setting, checkpoint)),
        extra_env=vllm_environment(setting),
        log_path=folder / "server.log",
    )
    with PeerServer(options) as server:
        yield HttpDoor(server.url)


@contextmanager
def transformers_serve(setting: Setting, checkpoint: Path, folder: Path, packages: Path) -> Iterator[HttpDoor]:
    """transformers' own server with continuous batching; `packages` holds what it needs beside this environment."""
    page = 256
    options = PeerOptions(
        command=(
            sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(checkpoint),
            "--continuous-batching", "--dtype", setting.dtype, "--device", "cpu" if setting.cpus else "cuda",
            "--cb-block-size", str(page), "--cb-num-blocks", str(setting.kv_cache_tokens // page),
            "--cb-max-batch-tokens", str(setting.max_step_tokens), "--log-level", "error",
        ),
        extra_env={"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"},
        log_path=folder / "server.log",
    )  # fmt: skip
    # It takes text alone, and no `ignore_eos`: an end that is no token never comes.
    never = json.dumps({"do_sample": False, "eos_token_id": -1, "pad_token_id": 2})
    with PeerServer(options) as server:
        yield HttpDoor(server.url, str(checkpoint), as_text=True, more={"generation_config": never})


@contextmanager
def llama_server(setting: Setting, model: Path, folder: Path, program: Path) -> Iterator[HttpDoor]:
    """llama.cpp's own server; `model` is a GGUF file, and every sequence has a whole context of its own."""
    flags = {
        "model": model,
        "alias": "chat",
        "parallel": setting.max_sequences,
        "ctx-size": setting.max_sequences * setting.max_model_len,
        "threads": len(setting.cpus),
        "threads-batch": len(setting.cpus),
        "ubatch-size": setting.max_step_tokens,
        "log-verbosity": 2,  # warnings, as the others
    }
    options = PeerOptions(
        command=(str(program), *(text for name, value in flags.items() for text in (f"--{name}", str(value)))),
        log_path=folder / "server.log",
    )
    with PeerServer(options) as server:
        yield HttpDoor(server.url)


@contextmanager
def triton(
    engine: str, setting: Setting, checkpoint: Path, folder: Path, python: Path, more: dict[str, object] | None = None
) -> Iterator[LocalTriton]:
    """A tritonserver with this engine, and `more` settings of it; `python` is of vLLM's environment."""
    settings = folder / "engine.json"
    settings.write_text(json.dumps({**engine_settings(setting, checkpoint, engine), **(more or {})}, indent=2))
    on_vllm = {**vllm_environment(setting), **stub_environment(python, os.environ)} if engine == "vllm" else {}
    options = TritonOptions(
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        model=None,
        engine_config=settings,
        models=("chat",),
        extra_env=on_vllm,
        log_path=folder / "triton.log",
    )
    with LocalTriton(options) as server:
        yield server


@contextmanager
def through_grpc(engine: str, setting: Setting, checkpoint: Path, folder: Path, python: Path) -> Iterator[GrpcDoor]:
    with triton(engine, setting, checkpoint, folder, python) as server:
        yield GrpcDoor(server.grpc_address)


@contextmanager
def through_gateway(
    engine: str, setting: Setting, checkpoint: Path, folder: Path, python: Path, more: dict[str, object] | None = None
) -> Iterator[HttpDoor]:
    # Nobody is to be refused here.
    quiet = {"TRITON_CHAT_GATEWAY_LOG_LEVEL": "warning", "TRITON_CHAT_GATEWAY_MAX_QUEUE_SECONDS": "0"}
    options = GatewayOptions(port=0, extra_env=quiet, log_path=folder / "gateway.log")
    with (
        triton(engine, setting, checkpoint, folder, python, more) as server,
        LocalGateway(options, server.grpc_address) as gateway,
    ):
        yield HttpDoor(gateway.url)
