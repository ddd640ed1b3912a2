"""`make image`: which engine, and what it is told. The engines are scripts that note how they were called."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tools.images import build

SCRIPT = build.ROOT / "tools" / "images" / "build.py"
ENGINE = """\
#!{python}
import json, sys
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit({codes}.get(sys.argv[1], 0))
"""


def install(folder: Path, name: str, codes: Mapping[str, int] | None = None) -> Path:
    """Puts an engine into `folder`; `codes` are the exit codes of its commands."""
    folder.mkdir(exist_ok=True)
    calls, engine = folder / f"{name}.calls", folder / name
    engine.write_text(ENGINE.format(python=sys.executable, calls=str(calls), codes=dict(codes or {})))
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    return calls


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make image`, where there is nothing but what `folder` holds."""
    command = [sys.executable, str(SCRIPT), *arguments]
    settings = {"PATH": str(folder), **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


def builds(calls: Path) -> list[list[str]]:
    return [call for call in map(json.loads, calls.read_text().splitlines()) if call[0] == "build"]


def test_the_three_targets_are_built_by_the_first_engine_that_answers(tmp_path: Path) -> None:
    docker = install(tmp_path, "docker", {"info": 1})  # a client without its daemon
    podman, buildah = install(tmp_path, "podman"), install(tmp_path, "buildah")
    done = make(tmp_path)
    assert done.returncode == 0, done.stderr
    assert builds(docker) == []
    assert not buildah.exists()
    tags = [argument for call in builds(podman) for argument in call if argument.startswith("--tag=")]
    assert tags == [f"--tag={build.IMAGES[name]}:{build.version()}" for name in ("triton", "gateway", "ui")]
    targets = [argument for call in builds(podman) for argument in call if argument.startswith("--target=")]
    assert targets == ["--target=triton", "--target=gateway", "--target=ui"]
    assert "[1/3] triton-chat:" in done.stdout


def test_the_image_with_vllm_is_built_for_those_who_ask_for_it(tmp_path: Path) -> None:
    calls = install(tmp_path, "docker")
    assert make(tmp_path, "--engine", "vllm", "--triton-vllm-base", "base:3").returncode == 0
    assert len(builds(calls)) == len(build.IMAGES) == 4
    assert "--target=triton-vllm" in builds(calls)[3]
    assert f"--tag=triton-chat-vllm:{build.version()}" in builds(calls)[3]
    assert "--build-arg=TRITON_VLLM_BASE=base:3" in builds(calls)[3]


def test_the_format_that_keeps_the_healthcheck_is_asked_for_where_it_is_not_the_only_one(tmp_path: Path) -> None:
    podman = install(tmp_path / "podman", "podman")
    assert make(tmp_path / "podman").returncode == 0
    assert all("--format=docker" in call for call in builds(podman))
    docker = install(tmp_path / "docker", "docker")
    assert make(tmp_path / "docker").returncode == 0
    assert not any("--format=docker" in call for call in builds(docker))


def test_what_the_user_chooses_reaches_the_build(tmp_path: Path) -> None:
    calls = install(tmp_path, "docker")
    flags = ("--registry", "registry.example.com/team", "--tag", "1", "--triton-base", "base:2", "--source", "")
    assert make(tmp_path, *flags, "--", "--push", "--platform=linux/amd64").returncode == 0
    for call in builds(calls):
        assert "--build-arg=TRITON_BASE=base:2" in call
        assert f"--build-arg=VERSION={build.version()}" in call
        assert not any("PYTHON_BASE" in argument or "SOURCE" in argument for argument in call)
        assert {"--push", "--platform=linux/amd64"} < set(call)
        assert call[-1] == str(build.ROOT)
    assert "--tag=registry.example.com/team/triton-chat-ui:1" in builds(calls)[2]


def test_a_failed_build_ends_it_with_the_exit_code_of_the_engine(tmp_path: Path) -> None:
    calls = install(tmp_path, "docker", {"build": 17})
    done = make(tmp_path)
    assert done.returncode == 17
    assert len(builds(calls)) == 1
    assert f"triton-chat:{build.version()} could not be built" in done.stderr


@pytest.mark.parametrize(
    ("environment", "cause"),
    [
        ({}, "docker is installed, but `docker info` fails; podman is not installed; buildah is not installed"),
        ({"CONTAINER_ENGINE": "nerdctl"}, "nerdctl is not installed"),
    ],
)
def test_without_an_engine_it_says_why_and_what_helps(tmp_path: Path, environment: dict[str, str], cause: str) -> None:
    install(tmp_path, "docker", {"info": 1})
    done = make(tmp_path, **environment)
    assert done.returncode == 1
    assert cause in done.stderr
    assert "fix: start Docker, or install podman" in done.stderr


def test_a_named_engine_is_taken(tmp_path: Path) -> None:
    docker, mine = install(tmp_path, "docker"), install(tmp_path / "mine", "podman")
    assert make(tmp_path, CONTAINER_ENGINE=str(tmp_path / "mine" / "podman")).returncode == 0
    assert len(builds(mine)) == 3
    assert not docker.exists()


def test_the_chart_names_the_images_that_are_built() -> None:
    values = yaml.safe_load((build.ROOT / "deploy" / "helm" / "triton-chat" / "values.yaml").read_text("utf-8"))
    named = {key: one["repository"] for key, one in values["image"].items() if isinstance(one, dict)}
    assert {"triton", "gateway", "ui"} <= named.keys()
    assert named.items() <= {_key(target): name for target, name in build.IMAGES.items()}.items()


def _key(target: str) -> str:
    """`triton-vllm` as the chart's values spell it: `tritonVllm`."""
    first, *others = target.split("-")
    return first + "".join(map(str.title, others))
