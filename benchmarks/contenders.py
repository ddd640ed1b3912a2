"""Who is compared: this project at three levels, and its peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks import library, servers
from benchmarks.doors import Door
from benchmarks.loads import Arrivals, Load
from benchmarks.peers import MissingError, Workshop
from benchmarks.setting import Setting


@dataclass(frozen=True)
class Given:
    """What a contender is started with.

    Attributes:
        setting: of all.
        checkpoint: that all serve.
        python: of an environment with vLLM.
        workshop: where environments of peers are made.
        folder: of its own, for settings and logs.
    """

    setting: Setting
    checkpoint: Path
    python: Path
    workshop: Workshop
    folder: Path


Start = Callable[[Given], AbstractContextManager[Door]]
"""Raises MissingError, with the reason, where it cannot run here."""


@dataclass(frozen=True)
class Contender:
    """One of them.

    Attributes:
        name: for people.
        start: gives the way in while it runs.
        ours: whether it is of this project.
        http: whether it is asked through HTTP.
        batches: whether it takes no request while it answers others.
        quick: whether `--quick` measures it where none is named.
    """

    name: str
    start: Start
    ours: bool = False
    http: bool = True
    batches: bool = False
    quick: bool = False

    @property
    def slug(self) -> str:
        """As a file's name."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name).split())

    def why_not(self, load: Load) -> str | None:
        """The reason for which a load means nothing here."""
        if self.batches and load.open:
            return "it takes no request while a batch runs"
        if isinstance(load, Arrivals) and not self.http:
            return "latency is compared through HTTP alone"
        return None


ALONE = "engine native, alone"
GRPC = "engine native, gRPC"
GATEWAY = "engine native, HTTP"
LEVELS = (ALONE, GRPC, GATEWAY)
"""Of the same engine, each with one more door."""
INT8 = "engine native int8, HTTP"
VLLM_SERVE = "vllm serve"


def _vllm_gateway(given: Given) -> AbstractContextManager[Door]:
    python = given.workshop.vllm(given.python)
    return servers.through_gateway("vllm", given.setting, given.checkpoint, given.folder, python)


def _vllm_serve(given: Given) -> AbstractContextManager[Door]:
    python = given.workshop.vllm(given.python)
    return servers.vllm_serve(given.setting, given.checkpoint, given.folder, python)


def _transformers_serve(given: Given) -> AbstractContextManager[Door]:
    packages = given.workshop.accelerate()
    return servers.transformers_serve(given.setting, given.checkpoint, given.folder, packages)


def _llama_server(given: Given) -> AbstractContextManager[Door]:
    if not given.setting.cpus:
        raise MissingError("it is compiled for CPUs here")
    program = given.workshop.llama_server()
    model = given.workshop.gguf(given.checkpoint, given.setting.dtype)
    return servers.llama_server(given.setting, model, given.folder, program)


def _alone(given: Given) -> AbstractContextManager[Door]:
    return nullcontext(library.EngineDoor(servers.engine_settings(given.setting, given.checkpoint, "native")))


def _native(given: Given, through: Callable[..., AbstractContextManager[Door]]) -> AbstractContextManager[Door]:
    return through("native", given.setting, given.checkpoint, given.folder, given.python)


def _int8(given: Given) -> AbstractContextManager[Door]:
    if not given.setting.cpus:
        raise MissingError("these weights are for CPUs")
    more: dict[str, object] = {"quantization": "int8"}
    return servers.through_gateway("native", given.setting, given.checkpoint, given.folder, given.python, more)


def _library(door: type[library.LibraryDoor]) -> Start:
    return lambda given: nullcontext(door(given.checkpoint, given.setting))


ALL = (
    Contender(ALONE, _alone, ours=True, http=False, quick=True),
    Contender(GRPC, lambda given: _native(given, servers.through_grpc), ours=True, http=False, quick=True),
    Contender(GATEWAY, lambda given: _native(given, servers.through_gateway), ours=True, quick=True),
    Contender(INT8, _int8, ours=True),
    Contender("engine vllm, HTTP", _vllm_gateway, ours=True),
    Contender(VLLM_SERVE, _vllm_serve, quick=True),
    Contender("llama.cpp server", _llama_server, quick=True),
    Contender("transformers serve", _transformers_serve),
    Contender("transformers continuous batching", _library(library.ContinuousBatchingDoor), http=False),
    Contender("transformers generate", _library(library.StaticBatchesDoor), http=False, batches=True),
)


def chosen(parts: Sequence[str] | None, *, quick: bool = False) -> list[Contender]:
    """Those whose name holds one of these; without any, all, or the quick ones.

    Raises ValueError, with the names, for one that no name holds.
    """
    if not parts:
        return [contender for contender in ALL if contender.quick or not quick]
    for part in parts:
        if not any(part in contender.name for contender in ALL):
            raise ValueError(f"no contender's name holds {part!r}; there are: {'; '.join(c.name for c in ALL)}")
    return [contender for contender in ALL if any(part in contender.name for part in parts)]
