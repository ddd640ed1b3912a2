"""Builds the images of the Dockerfile with docker, podman or buildah, whichever is there. Standard library only."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {
    "triton": "triton-chat",
    "gateway": "triton-chat-gateway",
    "ui": "triton-chat-ui",
    "triton-vllm": "triton-chat-vllm",
}
"""Target of the Dockerfile -> name of the image, as the chart has it."""
TARGETS = {"native": ("triton", "gateway", "ui"), "vllm": tuple(IMAGES)}
"""By engine. The base with vLLM is large, so it is for those who ask for it."""

_ENGINES = ("docker", "podman", "buildah")
_ASK_S = 20
_NONE = """\
no container engine answers here: {tried}
  fix: start Docker, or install podman or buildah; CONTAINER_ENGINE names one that is not on PATH"""


@dataclass(frozen=True)
class Build:
    """What to build, and of what."""

    registry: str = ""
    """With its path; empty for none."""
    tag: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Of the Dockerfile. Empty ones are left to its defaults."""
    extra: Sequence[str] = ()
    """Further flags for the engine's `build`."""

    def image(self, target: str) -> str:
        """Its name and tag."""
        name = f"{self.registry}/{IMAGES[target]}" if self.registry else IMAGES[target]
        return f"{name}:{self.tag}"

    def command(self, engine: Sequence[str], target: str) -> list[str]:
        """For `engine`, from the root of the repository."""
        # OCI's own format has no place for HEALTHCHECK; docker writes no other.
        formats = [] if Path(engine[0]).name == "docker" else ["--format=docker", "--layers"]
        arguments = [f"--build-arg={name}={value}" for name, value in self.arguments.items() if value]
        tag = self.image(target)
        return [*engine, "build", *formats, *arguments, *self.extra, f"--target={target}", f"--tag={tag}", str(ROOT)]


def main() -> int:
    """Exits with 1 where there is no engine, and as the engine does where a build fails."""
    options = _parser().parse_args()
    engine = find_engine(os.environ)
    if isinstance(engine, str):
        print(engine, file=sys.stderr)
        return 1
    arguments = {
        "TRITON_BASE": options.triton_base,
        "TRITON_VLLM_BASE": options.triton_vllm_base,
        "PYTHON_BASE": options.python_base,
        "VERSION": version(),
        "REVISION": revision(),
        "SOURCE": options.source,
    }
    build = Build(options.registry, options.tag or version(), arguments, options.extra)
    return run(build, engine, TARGETS[options.engine or "native"])


def run(
    build: Build, engine: Sequence[str], targets: Sequence[str], environment: Mapping[str, str] | None = None
) -> int:
    """Builds one image after the other, and tells how long each took. Returns the exit code of the last build."""
    for number, target in enumerate(targets, 1):
        print(f"[{number}/{len(targets)}] {build.image(target)}, with {Path(engine[0]).name}", flush=True)
        began = monotonic()
        code = subprocess.run(build.command(engine, target), env=environment, check=False).returncode
        if code:
            print(f"{build.image(target)} could not be built", file=sys.stderr)
            return code
        print(f"[{number}/{len(targets)}] {build.image(target)} took {monotonic() - began:.0f} s", flush=True)
    return 0


def find_engine(environment: Mapping[str, str]) -> list[str] | str:
    """The command of the first engine that answers, or a sentence that says why there is none."""
    named = environment.get("CONTAINER_ENGINE")
    tried = []
    for name in [named] if named else _ENGINES:
        found = shutil.which(name, path=environment.get("PATH", os.defpath))
        if found is None:
            tried.append(f"{name} is not installed")
        elif _answers(found):
            return [found]
        else:
            tried.append(f"{name} is installed, but `{name} info` fails")
    return _NONE.format(tried="; ".join(tried))


def version() -> str:
    """Of pyproject.toml."""
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert found, "pyproject.toml has no version"
    return found[1]


def revision() -> str:
    """The commit, with `-dirty` where files have changed since; empty outside a clone."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _answers(engine: str) -> bool:
    """The client alone builds nothing: docker needs its daemon. buildah's `info` and podman's do what they say."""
    try:
        return subprocess.run([engine, "info"], capture_output=True, timeout=_ASK_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make image", description=__doc__, allow_abbrev=False)
    parser.add_argument("--registry", default="", help="registry.example.com/team; none by default")
    parser.add_argument("--tag", default="", help="the version of pyproject.toml by default")
    parser.add_argument("--triton-base", default="", help="the default is in the Dockerfile")
    parser.add_argument("--triton-vllm-base", default="", help="the default is in the Dockerfile")
    parser.add_argument("--engine", choices=["", *TARGETS], default="", help="vllm: triton-chat-vllm too")
    parser.add_argument("--python-base", default="", help="the default is in the Dockerfile")
    parser.add_argument("--source", default="", help="where the sources are published, for the images' labels")
    parser.add_argument("extra", nargs="*", metavar="-- FLAGS", help="for the engine's own `build`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
