"""The servers that `vllm_serve.py` compares, of one checkpoint and with the same settings."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import typer
from rich.console import Console

from benchmarks.workload import DEEPSEEK_7B, LLAMA_82M, Shape
from local import ports, readiness
from local.gateway import LocalGateway
from local.options import GatewayOptions, ServiceOptions, TritonOptions
from local.preflight import Problem
from local.process import KeptProcess
from local.service import LocalService
from local.triton import LocalTriton

DIRECT = "vllm serve"
OURS = "engine vllm, through Triton and the gateway"
NATIVE = "engine native, through Triton and the gateway"

# What models in Triton set for OpenMP (triton_io), and vLLM's workers there inherit. `vllm serve` gets it too: with
# libgomp's own, which spins for long, it was several times slower on busy cores; that is none of the doors' doing.
SPINNING = {"GOMP_SPINCOUNT": "1000"}

console = Console(stderr=True)


class ModelShape(StrEnum):
    LLAMA_82M = "llama-82m"
    DEEPSEEK_7B = "deepseek-7b"


@dataclass(frozen=True)
class Setting:
    """What every server is given; equal for all, so that only the doors differ.

    Attributes:
        cpus: cores of the engine; none where it computes on a GPU.
        apart: one server after the other instead of all at once, because the device has room for one.
    """

    shape: Shape
    dtype: str
    streams: tuple[int, ...]
    cpus: tuple[int, ...]
    block_size: int
    kv_cache_bytes: int
    max_step_tokens: int
    enforce_eager: bool
    apart: bool

    @property
    def max_sequences(self) -> int:
        return max(self.streams)

    @property
    def kv_cache_tokens(self) -> int:
        """As many as fit, in whole blocks."""
        token = self.shape.kv_bytes * (2 if self.dtype == "float32" else 1)
        return self.kv_cache_bytes // (token * self.block_size) * self.block_size

    @property
    def max_model_len(self) -> int:
        return self.shape.max_position_embeddings


SETTINGS = {
    ModelShape.LLAMA_82M: Setting(
        LLAMA_82M, "bfloat16", (1, 8, 32), (0, 1), 128, 1 << 30, 2048, enforce_eager=True, apart=False
    ),
    ModelShape.DEEPSEEK_7B: Setting(
        DEEPSEEK_7B, "bfloat16", (1, 16, 64, 256), (), 16, 48 << 30, 8192, enforce_eager=False, apart=True
    ),
}


@dataclass(frozen=True, kw_only=True)
class VllmOptions(ServiceOptions):
    python: Path
    arguments: tuple[str, ...]
    ready_timeout_s: float = 900.0


class VllmServe(LocalService):
    """vLLM's own server; not by its command, which does not start where vLLM's build for CPUs is installed."""

    name = DIRECT
    options: VllmOptions

    def __init__(self, options: VllmOptions) -> None:
        super().__init__()
        (self._port,) = ports.choose(options.host, (0,))
        self.options = options

    @property
    def url(self) -> str:
        return f"http://{self._client_host}:{self._port}"

    def problems(self) -> list[Problem]:
        return []

    def _spawn(self) -> KeptProcess:
        address = ("--host", self.options.host, "--port", str(self._port))
        return KeptProcess(
            [str(self.options.python), "-m", "vllm.entrypoints.openai.api_server", *address, *self.options.arguments],
            {**os.environ, **self.options.extra_env},
            self.options.log_path,
            self.options.exit_timeout_s,
        )

    def _answers(self) -> bool:
        return readiness.answers(f"{self.url}/health")


def direct_arguments(setting: Setting, checkpoint: Path) -> tuple[str, ...]:
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
    shared = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **SPINNING}
    return shared | ({"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, setting.cpus))} if setting.cpus else {})


def stub_environment(python: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """For a tritonserver whose models are to run in another Python: it takes the first `python` on PATH."""
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    path = os.pathsep.join((str(python.parent), inherited.get("PATH", os.defpath)))
    return {"PATH": path, "PYTHONPATH": packages}


@contextmanager
def direct(setting: Setting, checkpoint: Path, python: Path, folder: Path) -> Iterator[str]:
    """Gives the address of `vllm serve`."""
    options = VllmOptions(
        python=python,
        arguments=direct_arguments(setting, checkpoint),
        extra_env=vllm_environment(setting),
        log_path=folder / "vllm-serve.log",
    )
    with VllmServe(options) as server:
        yield server.url


@contextmanager
def behind_triton(engine: str, setting: Setting, checkpoint: Path, python: Path, folder: Path) -> Iterator[str]:
    """Gives the address of the gateway before a tritonserver with this engine."""
    settings = folder / f"engine-{engine}.json"
    settings.write_text(json.dumps(engine_settings(setting, checkpoint, engine), indent=2))
    on_vllm = {**vllm_environment(setting), **stub_environment(python, os.environ)} if engine == "vllm" else {}
    triton = TritonOptions(
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        model=None,
        engine_config=settings,
        models=("chat",),
        extra_env=on_vllm,
        log_path=folder / f"triton-{engine}.log",
    )
    # Nobody is to be refused here.
    quiet = {"TRITON_CHAT_GATEWAY_LOG_LEVEL": "warning", "TRITON_CHAT_GATEWAY_MAX_QUEUE_SECONDS": "0"}
    gateway = GatewayOptions(port=0, extra_env=quiet, log_path=folder / f"gateway-{engine}.log")
    with LocalTriton(triton) as server, LocalGateway(gateway, server.grpc_address) as door:
        yield door.url


Server = Callable[[], AbstractContextManager[str]]
"""Starts one; gives its address."""


def servers_of(setting: Setting, checkpoint: Path, python: Path, folder: Path) -> dict[str, Server]:
    """All three by name.

    Args:
        setting: of each.
        checkpoint: that they serve.
        python: of an environment with vLLM.
        folder: for their settings and logs.
    """
    return {
        DIRECT: partial(direct, setting, checkpoint, python, folder),
        OURS: partial(behind_triton, "vllm", setting, checkpoint, python, folder),
        NATIVE: partial(behind_triton, "native", setting, checkpoint, python, folder),
    }


@contextmanager
def all_of(servers: Mapping[str, Server]) -> Iterator[dict[str, str]]:
    """Addresses of these, all at once."""
    with ExitStack() as stack:
        urls = {}
        for name, server in servers.items():
            with console.status(f"starting: {name}"):
                urls[name] = stack.enter_context(server())
        yield urls


def vllm_version(python: Path) -> str:
    """Of the vLLM in that environment, without importing it."""
    code = (
        "from importlib.metadata import distributions as d; "
        "print(next(x.version for x in d() if x.name in ('vllm', 'vllm-cpu')))"
    )
    found = subprocess.run([str(python), "-c", code], check=False, capture_output=True, text=True)
    if found.returncode:
        raise typer.BadParameter(f"there is no vLLM in {python}", param_hint="--vllm-python")
    return found.stdout.strip()
