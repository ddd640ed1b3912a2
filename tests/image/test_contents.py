"""What is in the images, and what they tell an engine."""

from __future__ import annotations

import json

import pytest
from packaging.utils import canonicalize_name

from tests.image.conftest import Image
from tests.image.containers import code_of
from tests.test_requirements import pins
from tools.images import build
from tools.images.podman import Podman
from tools.supply.sbom import Engine

TARGETS = ("triton", "gateway", "ui")
PORTS = {"triton": {"8000/tcp", "8001/tcp", "8002/tcp"}, "gateway": {"9000/tcp"}, "ui": {"8501/tcp"}}
COMMANDS = {
    "triton": {"triton-chat", "triton-chat-server"},
    "gateway": {"triton-chat", "triton-chat-gateway"},
    "ui": set(),
}
IMPORTS = {
    "triton": "torch, transformers, boto3, triton_chat_server.serve.command, triton_chat",
    "gateway": "chat_gateway.app, openai, triton_chat.client",
    "ui": "openai, streamlit, pandas",
}
LARGEST_MB = {"triton": 2000, "gateway": 600, "ui": 900}
"""On the bases of the tests. More means that something came in unnoticed."""


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def image(images: dict[str, Image], target: str) -> Image:
    return images[target]


def test_it_runs_as_a_user_that_is_not_root(image: Image) -> None:
    assert image.config["User"] == "10001:10001"


def test_it_is_stopped_by_sigterm_and_tells_its_ports(image: Image, target: str) -> None:
    assert image.config["StopSignal"] in ("SIGTERM", "15")
    assert set(image.config["ExposedPorts"]) == PORTS[target]


def test_it_says_how_its_health_is_checked(image: Image) -> None:
    assert image.health["Test"][0] == "CMD"
    assert image.health["Retries"] == 3


def test_its_labels_say_what_it_is(image: Image) -> None:
    labels = image.config["Labels"]
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == image.name.rpartition("/")[2].partition(":")[0]
    assert labels[f"{prefix}description"]
    assert labels[f"{prefix}licenses"] == "Apache-2.0"
    assert labels[f"{prefix}version"] == build.version()
    assert labels[f"{prefix}revision"]


def test_triton_serves_by_default(images: dict[str, Image]) -> None:
    assert images["triton"].config["Entrypoint"] == ["triton-chat-server"]
    assert images["triton"].config["Cmd"] == ["serve"]


def test_nothing_of_the_build_is_left_and_only_root_may_change_the_files(podman: Podman, image: Image) -> None:
    assert json.loads(_python(podman, image, code_of("contents.py"), "--user=0")) == {}


def test_it_has_the_commands_that_it_can_run(podman: Podman, image: Image, target: str) -> None:
    code = "import os; print(*(name for name in os.listdir('/opt/triton-chat/bin') if name.startswith('triton-chat')))"
    commands = set(_python(podman, image, code).split())
    assert commands == COMMANDS[target]
    for command in commands:
        podman("run", "--rm", "--network=none", f"--entrypoint={command}", image.name, "--help")


def test_what_it_imports_is_compiled(podman: Podman, image: Image, target: str) -> None:
    code = f"import {IMPORTS[target]}"
    done = podman.run("run", "--rm", "--network=none", "--entrypoint=python3", image.name, "-v", "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = [line for line in done.stderr.splitlines() if line.startswith("# code object from")]
    assert len(loaded) > 100
    assert [line for line in loaded if ".pyc" not in line] == []


def test_the_sources_that_triton_runs_are_compiled(podman: Podman, images: dict[str, Image]) -> None:
    code = (
        "import glob, importlib.util as u, os; "
        "print(*(p for p in glob.glob('/opt/triton-chat/model_repository/**/*.py', recursive=True) "
        "if not os.path.exists(u.cache_from_source(p))))"
    )
    assert _python(podman, images["triton"], code).split() == []


def test_it_is_not_larger_than_it_has_to_be(image: Image, target: str) -> None:
    assert image.size < LARGEST_MB[target] * 1_000_000


def test_the_licence_is_in_it(podman: Podman, image: Image) -> None:
    code = "print(open('/opt/triton-chat/LICENSE').read())"
    assert _python(podman, image, code).strip() == (build.ROOT / "LICENSE").read_text("utf-8").strip()


def _python(podman: Podman, image: Image, code: str, *flags: str) -> str:
    return podman("run", "--rm", "--network=none", "--entrypoint=python3", *flags, image.name, "-c", code)


def test_its_bill_of_materials_can_be_made(image: Image, target: str, podman: Podman) -> None:
    """Of what is installed: the packages of the lock file, and those of the system."""
    found = Engine(podman.command, podman.environment).inventory(image.name)
    # The environment's come first; a build of torch has a version of its own behind the +.
    python = {
        canonicalize_name(one["name"]): f"=={one['version'].partition('+')[0]}" for one in reversed(found["python"])
    }
    wanted = pins("server" if target == "triton" else target)
    assert wanted.items() <= python.items()
    assert found["system"]["id"] == "debian"
    assert "libc6" in {one["name"] for one in found["debian"]}
