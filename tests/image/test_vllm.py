"""The image with vLLM, on a Debian base with its build for CPUs: `make test-image-vllm` builds it first."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.image.conftest import Image, look_up
from tests.image.containers import TINY, Container, Containers, code_of
from tests.test_requirements import pins
from tools.images import build, development
from tools.images.podman import Podman

READY_S = 400.0
STOP_S = 60
VLLM = (f"--env=TRITON_CHAT_MODEL={TINY}", "--env=TRITON_CHAT_ENGINE=vllm")
SHARED_MEMORY = "--shm-size=1g"  # vLLM's processes talk through it; an engine's own 64 MB are too few
SLIM = ("serve", "--device=cpu", "--no-embeddings")


@pytest.fixture(scope="module")
def image(podman: Podman) -> Image:
    (name,) = development.images("vllm").values()
    return look_up(podman, name)


@pytest.fixture(scope="module")
def served(podman: Podman, image: Image) -> Iterator[Container]:
    """With vLLM as the engine of models/tiny-chat; tests share it, and the last stops it."""
    containers = Containers(podman, {"triton": image.name}, ready_s=READY_S)
    yield containers.triton(*VLLM, SHARED_MEMORY, arguments=SLIM)
    containers.close()


def test_it_is_locked_down_and_says_what_it_is(image: Image) -> None:
    assert image.config["User"] == "10001:10001"
    assert image.config["Entrypoint"] == ["triton-chat-server"]
    assert image.config["Cmd"] == ["serve"]
    assert image.config["StopSignal"] in ("SIGTERM", "15")
    assert set(image.config["ExposedPorts"]) == {"8000/tcp", "8001/tcp", "8002/tcp"}
    assert image.health["Test"][0] == "CMD"
    assert image.config["Labels"]["org.opencontainers.image.title"] == "triton-chat-vllm"
    assert image.config["Labels"]["org.opencontainers.image.version"] == build.version()
    assert not any(variable.startswith("TRITON_CHAT_ENGINE") for variable in image.config["Env"])


def test_nothing_of_the_build_is_left_and_only_root_may_change_the_files(podman: Podman, image: Image) -> None:
    code = code_of("contents.py")
    told = podman("run", "--rm", "--network=none", "--user=0", "--entrypoint=python3", image.name, "-c", code)
    assert json.loads(told) == {}


def test_the_base_shows_through_and_the_lock_file_is_in_it(podman: Podman, image: Image) -> None:
    """A base with vLLM in its own Python is used as it is: see the Dockerfile."""
    code = (
        "import json, sys; from importlib import metadata; from pathlib import Path; "
        "print(json.dumps([Path(sys.prefix, 'pyvenv.cfg').read_text(), "
        "{one.name.lower().replace('_', '-'): one.version for one in metadata.distributions(path=[next("
        "path for path in sys.path if path.startswith(sys.prefix))])}]))"
    )
    told = podman("run", "--rm", "--network=none", "--entrypoint=python3", image.name, "-c", code)
    settings, packages = json.loads(told)
    assert "include-system-site-packages = true" in settings
    wanted = {**pins("vllm"), **pins("vllm-image")}
    assert {name: f"=={packages.get(name.lower())}" for name in wanted} == wanted


def test_it_answers_with_vllm(served: Container) -> None:
    assert "loaded by vLLM" in served.log()
    events = served.script("grpc_stream.py", "chat", "Who are you?", json.dumps({"temperature": 0}))
    assert "tiny-chat" in "".join(event["text"] for event in events)
    assert events[-1]["finish_reason"] == "stop"
    assert served.is_healthy()


def test_no_process_is_root_or_has_a_capability(served: Container) -> None:
    processes = served.script("processes.py")[0]
    assert any("VLLM" in process["Name"] for process in processes)
    for process in processes:
        assert set(process["Uid"].split() + process["Gid"].split()) == {"10001"}, process
        assert process["CapEff"] == process["CapBnd"] == "0" * 16, process


def test_sigterm_ends_all_of_it(served: Container) -> None:
    """Its processes are in the container's own space of ids, which ends with the first: nothing stays behind."""
    served.terminate()
    assert served.wait(STOP_S) == 0
    assert served.state["Status"] == "exited"
    assert served.state["Pid"] == 0
