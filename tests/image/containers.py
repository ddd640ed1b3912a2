"""Containers of the built images, as locked down as a cluster would run them, and without any network."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tools.images.podman import Podman

HARDENED = (
    "--read-only",
    "--read-only-tmpfs=false",  # podman's own extra: Docker and Kubernetes mount no tmpfs unasked
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)
TINY = "/opt/triton-chat/models/tiny-chat"
READY_S = 180.0
INSIDE = Path(__file__).parent / "inside"


def code_of(name: str) -> str:
    """Of a file that runs in a container, which has nothing of this folder."""
    return (INSIDE / name).read_text("utf-8")


class Container:
    """Running until it is stopped; `close` removes it in any case."""

    def __init__(self, podman: Podman, image: str, *flags: str, arguments: Sequence[str] = ()) -> None:
        self._podman = podman
        self.name = f"triton-chat-test-{secrets.token_hex(4)}"
        podman("run", "--detach", f"--name={self.name}", *HARDENED, *flags, image, *arguments)

    def run(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command in it, however that ends."""
        return self._podman.run("exec", self.name, *command, timeout_s=timeout_s)

    def __call__(self, *command: str) -> str:
        """What a command in it prints; it must succeed."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command[0]}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def script(self, name: str, *arguments: str) -> list[Any]:
        """The lines of JSON that a file of `inside/`, run in it, prints."""
        return [json.loads(line) for line in self("python3", "-c", code_of(name), *arguments).splitlines()]

    def fetch(self, url: str) -> str | None:
        """The body of a 200 to its own network, else None."""
        code = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"
        done = self.run("python3", "-c", code, url)
        return done.stdout if done.returncode == 0 else None

    def is_healthy(self) -> bool:
        """Whether the HEALTHCHECK of the image succeeds."""
        return self._podman.run("healthcheck", "run", self.name).returncode == 0

    def wait_until_healthy(self, within_s: float = READY_S) -> None:
        deadline = time.monotonic() + within_s
        while not self.is_healthy():
            state = self.state
            if state["Status"] != "running" or time.monotonic() > deadline:
                pytest.fail(f"{self.name} is {state['Status']} and not healthy; its log:\n{self.log()}", pytrace=False)
            time.sleep(0.2)

    @property
    def state(self) -> dict[str, Any]:
        return json.loads(self._podman("inspect", "--type=container", self.name))[0]["State"]

    def log(self) -> str:
        done = self._podman.run("logs", self.name)
        return done.stdout + done.stderr

    def terminate(self) -> None:
        self._podman("kill", "--signal=TERM", self.name)

    def wait(self, within_s: float) -> int:
        """Its exit code. Fails where it takes longer."""
        try:
            return int(self._podman("wait", self.name, timeout_s=within_s))
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not stop within {within_s} s; its log:\n{self.log()}", pytrace=False)

    def close(self) -> None:
        self._podman("rm", "--force", "--time=0", self.name)


@dataclass
class Containers:
    """Starts containers and removes them all, the last one first: others may be in its network."""

    podman: Podman
    images: Mapping[str, str]
    ready_s: float = READY_S
    started: list[Container] = field(default_factory=list)

    def triton(self, *flags: str, arguments: Sequence[str] = ()) -> Container:
        """Healthy, with a network of its own that nothing leaves or enters."""
        triton = self.start("triton", "--network=none", *flags, arguments=arguments)
        triton.wait_until_healthy(self.ready_s)
        return triton

    def gateway(self, beside: Container, *flags: str) -> Container:
        """In the network of another container, where it finds Triton at its default address."""
        return self.start("gateway", f"--network=container:{beside.name}", *flags)

    def ui(self, *flags: str) -> Container:
        return self.start("ui", *flags)

    def close(self) -> None:
        for container in reversed(self.started):
            container.close()

    def start(self, target: str, *flags: str, arguments: Sequence[str] = ()) -> Container:
        container = Container(self.podman, self.images[target], *flags, arguments=arguments)
        self.started.append(container)
        return container


class Running:
    """A program in a container of its own, whose lines are read as they come."""

    def __init__(self, podman: Podman, image: str, beside: Container, script: str, *arguments: str) -> None:
        flags = ["--rm", f"--network=container:{beside.name}", *HARDENED, "--entrypoint=python3"]
        self._process = subprocess.Popen(
            [*podman.command, "run", *flags, image, "-c", code_of(script), *arguments],
            env=podman.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def line(self) -> dict[str, Any]:
        """The next one, which is JSON. Fails where there is none."""
        assert self._process.stdout
        text = self._process.stdout.readline()
        if not text:
            pytest.fail(f"it ended: {self.rest()}", pytrace=False)
        return json.loads(text)

    def rest(self) -> list[dict[str, Any]]:
        """All that is still to come; it must end well."""
        out, err = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()]

    def ends(self, within_s: float) -> int:
        """Its exit code."""
        self._process.communicate(timeout=within_s)
        return self._process.returncode

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
