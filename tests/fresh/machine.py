"""A machine that has nothing yet: Debian 12 with make, g++ and Python, the sources, and a user without rights."""

from __future__ import annotations

import secrets
import subprocess
import sysconfig
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from local.options import ROOT
from tools.images.podman import Podman

PACKAGES = ("make", "g++", "python3")
USER = "somebody"
CLONE = f"/home/{USER}/triton-chat"

_LENT = "/lent"
_CREATE_USER = f"useradd --create-home --shell /bin/bash {USER}"
_CLONE = f"mkdir {CLONE} && tar --extract --file=/sources.tar --directory={CLONE}"
_TOOLS = ".cache/node .cache/openai-node .cache/checkov-venv .cache/agents-venv .cache/sbom-venv"
_LEND = f"""\
python3 -m venv --without-pip .venv
folder=$(echo .venv/lib/python3.*)
rmdir $folder/site-packages
ln -s {_LENT} $folder/site-packages
mkdir -p {_TOOLS}
touch .venv/.ready $(printf '%s/.ready ' {_TOOLS})
"""


class Machine:
    """Running until `close`. Without a network, unless it is that of the host."""

    def __init__(self, podman: Podman, image: str, folder: Path, network: str = "none") -> None:
        self._podman = podman
        self._name = f"triton-chat-fresh-{secrets.token_hex(4)}"
        volumes = {_sources(folder): "/sources.tar", _apt_settings(folder): "/etc/apt/apt.conf.d/zz-host"}
        volumes[Path(sysconfig.get_path("purelib"))] = _LENT
        mounts = [f"--volume={source}:{target}:ro" for source, target in volumes.items()]
        flags = [f"--network={network}", "--security-opt=label=disable", *mounts]
        podman("run", "--detach", f"--name={self._name}", *flags, image, "sleep", "infinity")
        self.done(_CREATE_USER, user="root", folder="/")
        self.done(_CLONE, folder="/")

    def run(
        self, script: str, user: str = USER, folder: str = CLONE, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A script of bash, however that ends."""
        variables = [f"--env={name}={value}" for name, value in (environment or {}).items()]
        flags = [f"--user={user}", f"--workdir={folder}", *variables]
        return self._podman.run("exec", *flags, self._name, "bash", "-ec", script, timeout_s=600.0)

    def done(
        self, script: str, user: str = USER, folder: str = CLONE, environment: Mapping[str, str] | None = None
    ) -> str:
        """What a script prints that must succeed."""
        done = self.run(script, user, folder, environment)
        if done.returncode:
            pytest.fail(f"{script}\nexit code {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
        return done.stdout

    def lend_packages(self) -> None:
        """What pip and npm would bring is the same everywhere, takes minutes and GBs, and is this environment's."""
        self.done(_LEND)

    def close(self) -> None:
        self._podman("rm", "--force", "--time=0", self._name)


def _sources(folder: Path) -> Path:
    """What a clone would have if all that lies here were committed."""
    command = [
        "git",
        "-c",
        f"safe.directory={ROOT}",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    archive = folder / "sources.tar"
    with tarfile.open(archive, "w") as sources:
        for name in filter(None, names):
            if (ROOT / name).is_file():
                sources.add(ROOT / name, name)
    return archive


def _apt_settings(folder: Path) -> Path:
    """How this machine reaches package mirrors: its proxies, and what else it tells apt about downloads."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
    path = folder / "apt.conf"
    path.write_text(dump, encoding="utf-8")
    return path
