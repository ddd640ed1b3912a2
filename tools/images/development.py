"""Builds the images on bases of this machine, without network: `make test-image` runs this, and then the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from local.options import CACHE
from local.preflight import Problem
from tools.images import bases, build, wheels
from tools.images.podman import Podman, PodmanError

REGISTRY = "localhost/triton-chat-test"
TAG = "test"
WHEELS = CACHE / "wheels"

_PIP_SETTINGS = "[global]\nno-index = true\nfind-links = /wheels\nquiet = 1\nroot-user-action = ignore\n"
T = TypeVar("T")


def images() -> dict[str, str]:
    """Target -> name of the image that this makes."""
    return {target: build.Build(REGISTRY, TAG).image(target) for target in build.IMAGES}


def main() -> int:
    """Exits with 1 where containers cannot run, saying why and what helps, and where something cannot be built."""
    podman = Podman()
    try:
        problem = bases.problem() or podman.problem()
        if problem:
            return _failed(problem)
        python = _timed("Debian's Python", lambda: bases.python_base(podman))
        problem = podman.container_problem(python)
        if problem:
            return _failed(problem)
        triton = _timed("tritonserver 2.51 on it", lambda: bases.triton_base(podman, python))
        _timed(f"wheels in {WHEELS.relative_to(build.ROOT)}", lambda: wheels.prepare(WHEELS))
        return build.run(_build(podman, triton, python), podman.command, podman.environment)
    except (PodmanError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1


def _build(podman: Podman, triton_base: str, python_base: str) -> build.Build:
    settings = podman.folder / "pip.conf"
    settings.write_text(_PIP_SETTINGS, "utf-8")
    bases_and_labels = {
        "TRITON_BASE": triton_base,
        "PYTHON_BASE": python_base,
        "VERSION": build.version(),
        "REVISION": build.revision(),
    }
    flags = ["--network=none", f"--build-context=wheels={WHEELS}", f"--secret=id=pip,src={settings}"]
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
    sys.exit(main())
