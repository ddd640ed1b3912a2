"""Bases of this machine, in place of those that the Dockerfile names: Debian 12, its Python, and tritonserver 2.51."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from local.preflight import Problem
from tools.images.podman import Podman

SUITE = "bookworm"
PYTHON = (3, 11)
"""Of the suite. The wheels are downloaded by the running Python, which therefore has to be the same."""
PACKAGES = ("python3", "python3-pip", "libpython3.11")
FOR_VLLM = ("libnuma1",)
"""What vLLM's build for CPUs loads."""
CONTAINERFILE = Path(__file__).with_name("triton-base.Containerfile")

_UNUSED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def problem() -> Problem | None:
    if sys.version_info[:2] == PYTHON:
        return None
    wanted, running = (".".join(map(str, version[:2])) for version in (PYTHON, sys.version_info))
    return Problem(
        f"The images are tested on Debian 12, whose Python is {wanted}; this environment has {running}.",
        f"make clean, then make PYTHON=python{wanted} test-image.",
    )


def python_base(podman: Podman, engine: str = "native") -> str:
    """The name of an image with Python and pip, and what the engine loads. Raises as `debian`."""
    return debian(podman, PACKAGES if engine == "native" else PACKAGES + FOR_VLLM)


def debian(podman: Podman, packages: Sequence[str]) -> str:
    """The name of an image with these packages and what they depend on, made if it is not there yet.

    Raises:
        subprocess.CalledProcessError: mmdebstrap failed, and has said why.
    """
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    command.append('--aptopt=Acquire::Retries "5"')
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _UNUSED]
    name = f"localhost/triton-chat-base/debian:{_digest(*command, SUITE, _PATH)}"
    if not podman.has(name):
        archive = podman.folder / "python-base.tar"
        subprocess.run([*command, SUITE, str(archive)], check=True)
        podman("import", f"--change=ENV PATH={_PATH}", str(archive), name)
        archive.unlink()
    return name


def triton_base(podman: Podman, python: str) -> str:
    """The name of an image with tritonserver, built on `python`, if it is not there yet. Raises PodmanError."""
    version = metadata.version("nvidia-pytriton")
    name = f"localhost/triton-chat-base/tritonserver:{_digest(python, version, CONTAINERFILE.read_text('utf-8'))}"
    if not podman.has(name):
        python_version = ".".join(map(str, PYTHON))
        arguments = (f"--build-arg=PYTHON_BASE={python}", f"--build-arg=PYTHON_VERSION={python_version}")
        site_packages = sysconfig.get_path("purelib")
        podman("build", f"--file={CONTAINERFILE}", f"--tag={name}", *arguments, site_packages, timeout_s=300.0)
    return name


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
