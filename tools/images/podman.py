"""podman with a storage of its own, so that nothing of this machine's images is touched."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from local.options import CACHE
from local.preflight import Problem
from tools import needs

_LIMIT = 20_000
"""podman asks for more open files and processes than some machines allow, and fails there."""
_MACHINE = (
    "use a machine, or a virtual one, where you may start containers; inside a container that takes a privileged one"
)


class PodmanError(RuntimeError):
    """What podman said."""


@dataclass(frozen=True)
class Podman:
    """Storage and settings lie in `folder`."""

    folder: Path = CACHE / "containers"

    @property
    def command(self) -> list[str]:
        return ["podman", f"--root={self.folder / 'storage'}", f"--runroot={self._running}"]

    @property
    def environment(self) -> dict[str, str]:
        """With settings that hold also without systemd, and where limits may not be raised. Writes them."""
        settings: dict[str, dict[str, str | Sequence[str]]] = {
            "containers": {"default_ulimits": _ulimits(), "log_driver": "k8s-file"},
            "engine": {
                "cgroup_manager": "cgroupfs",
                "events_logger": "file",
                "lock_type": "file",  # those in shared memory are shared with every other podman of this user
                "runtime": needs.runtime() or needs.RUNTIMES[0],
                "tmp_dir": str(self._running / "libpod"),
            },
        }
        path = self.folder / "containers.conf"
        text = _toml(settings)
        if not path.exists() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        return {**os.environ, "CONTAINERS_CONF": str(path)}

    @property
    def _running(self) -> Path:
        """What podman keeps while something runs or is mounted; gone after a restart of the machine."""
        digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
        return Path(os.environ.get("XDG_RUNTIME_DIR") or "/run") / f"triton-chat-{digest}"

    def __call__(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Its output. Raises PodmanError."""
        done = self.run(*arguments, timeout_s=timeout_s)
        if done.returncode:
            shown = " ".join(arguments[:2])
            raise PodmanError(f"podman {shown}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def run(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """However it ends."""
        return subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def has(self, image: str) -> bool:
        return self.run("image", "exists", image).returncode == 0

    def problem(self) -> Problem | None:
        """What keeps it from working on this machine; `container_problem` can tell more once there is an image."""
        missing = needs.missing(needs.CONTAINERS)
        if missing:
            names = ", ".join(need.name for need in missing)
            return Problem(
                f"Containers cannot run here: {names} not installed.",
                f"on Debian or Ubuntu: apt-get install {needs.packages(missing)}",
            )
        info = self.run("info")
        if info.returncode:
            return Problem(f"Containers cannot run here: {_last_line(info.stderr)}", f"{_MACHINE}.")
        return None

    def container_problem(self, image: str) -> Problem | None:
        """What keeps a container of `image` from running."""
        done = self.run("run", "--rm", "--network=none", image, "true")
        if done.returncode == 0:
            return None
        return Problem(f"Containers cannot run here: {_last_line(done.stderr)}", f"{_MACHINE}.")


def _ulimits() -> list[str]:
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    return [f"{name}={_allowed(limit)}:{_allowed(limit)}" for name, limit in limits.items()]


def _allowed(limit: int) -> int:
    hard = resource.getrlimit(limit)[1]
    return _LIMIT if hard == resource.RLIM_INFINITY else min(hard, _LIMIT)


def _toml(tables: Mapping[str, Mapping[str, str | Sequence[str]]]) -> str:
    """Strings and lists of them look the same as in JSON."""
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason"
