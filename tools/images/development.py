"""Builds the images on bases of this machine, without network: `make test-image` runs this, and then the tests.

python -m tools.images.development --engine vllm   the image with vLLM alone, for `make test-image-vllm`
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import TypeVar

from local.options import CACHE
from local.preflight import Problem
from tools.images import bases, build, wheels
from tools.images.podman import Podman, PodmanError

REGISTRY = "localhost/triton-chat-test"
TAG = "test"

_PIP_SETTINGS = "[global]\nno-index = true\nfind-links = /wheels\nquiet = 1\nroot-user-action = ignore\n"
T = TypeVar("T")


TARGETS = {"native": build.TARGETS["native"], "vllm": ("triton-vllm",)}
"""By engine, what this builds."""


def images(engine: str = "native") -> dict[str, str]:
    """Target -> name of the image that this makes."""
    return {target: build.Build(REGISTRY, TAG).image(target) for target in TARGETS[engine]}


def main(arguments: Sequence[str]) -> int:
    """Exits with 1 where containers cannot run, saying why and what helps, and where something cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m tools.images.development", description=__doc__)
    parser.add_argument("--engine", choices=list(TARGETS), default="native")
    engine = parser.parse_args(arguments).engine
    podman = Podman()
    try:
        problem = bases.problem() or podman.problem()
        if problem:
            return _failed(problem)
        python = _timed("Debian's Python", lambda: bases.python_base(podman, engine))
        problem = podman.container_problem(python)
        if problem:
            return _failed(problem)
        triton = _timed("tritonserver 2.51 on it", lambda: bases.triton_base(podman, python))
        needed = wheels.OF_ENGINE[engine]
        folder = CACHE / needed.folder
        _timed(f"wheels in {folder.relative_to(build.ROOT)}", lambda: wheels.prepare(folder, needed))
        made = _build(podman, triton, python, folder)
        return build.run(made, podman.command, TARGETS[engine], podman.environment)
    except (PodmanError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1


def _build(podman: Podman, triton_base: str, python_base: str, wheels_folder: Path) -> build.Build:
    settings = podman.folder / "pip.conf"
    settings.write_text(_PIP_SETTINGS, "utf-8")
    bases_and_labels = {
        "TRITON_BASE": triton_base,
        "TRITON_VLLM_BASE": triton_base,
        "VLLM_LOCK": "vllm.txt",
        "PYTHON_BASE": python_base,
        "VERSION": build.version(),
        "REVISION": build.revision(),
    }
    flags = ["--network=none", f"--build-context=wheels={wheels_folder}", f"--secret=id=pip,src={settings}"]
    return build.Build(REGISTRY, TAG, bases_and_labels, flags)


def _timed(what: str, make: Callable[[], T]) -> T:
    print(f"{what} ...", flush=True)
    began = monotonic()
    made = make()
    print(f"{what}: {monotonic() - began:.0f} s", flush=True)
    return made


def _failed(problem: Problem) -> int:
    print(problem, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
