"""SIGTERM: what runs is finished, and the exit code is 0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.conftest import Image
from tests.image.containers import TINY, Container, Containers, Running
from tools.images.podman import Podman

TOKENS = 1000  # seconds, so that the signal comes while they run, and fewer than a drain takes
LONG = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "logit_bias": {"5": -100}}  # no end token, but text
IDLE_STOP_S = 30
BUSY_STOP_S = 60


@pytest.fixture
def programs() -> Iterator[list[Running]]:
    started: list[Running] = []
    yield started
    for program in started:
        program.close()


def test_the_gateway_finishes_an_answer(
    podman: Podman, images: dict[str, Image], triton: Container, containers: Containers, programs: list[Running]
) -> None:
    gateway = containers.gateway(triton, "--env=TRITON_CHAT_GATEWAY_PORT=9100")
    gateway.wait_until_healthy()
    program = Running(podman, images["gateway"].name, triton, "openai_stream.py", "9100", "Hello", json.dumps(LONG))
    programs.append(program)
    assert_finished(program, gateway)


def test_triton_finishes_an_answer_of_any_of_its_models(
    podman: Podman, images: dict[str, Image], containers: Containers, programs: list[Running], tmp_path: Path
) -> None:
    """Two chat models, by a folder of settings as a cluster mounts it: the repository is assembled in /tmp."""
    for name in ("chat", "second"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"model": TINY, "threads": 1}))
    tmp_path.chmod(0o755)
    triton = containers.triton(
        f"--volume={tmp_path}:/etc/triton-chat/engine:ro",
        "--env=TRITON_CHAT_ENGINE_CONFIG=/etc/triton-chat/engine",
        arguments=("serve", "--device=cpu", "--no-embeddings"),
    )
    program = Running(podman, images["gateway"].name, triton, "grpc_stream.py", "second", "Hello", json.dumps(LONG))
    programs.append(program)
    assert_finished(program, triton)


def test_the_idle_page_stops(containers: Containers) -> None:
    page = containers.ui("--network=none")
    page.wait_until_healthy()
    page.terminate()
    assert page.wait(IDLE_STOP_S) == 0


def test_a_model_that_is_not_there_ends_triton_with_an_error(containers: Containers) -> None:
    triton = containers.start(
        "triton", "--network=none", "--env=TRITON_CHAT_MODEL=/models/none", arguments=("serve", "--no-embeddings")
    )
    assert triton.wait(BUSY_STOP_S) not in (0, 137)
    assert "/models/none" in triton.log()


def assert_finished(program: Running, server: Container) -> None:
    """Stops `server` while it answers: the answer comes to its end all the same."""
    assert program.line()["finish_reason"] in (None, "")
    server.terminate()
    assert program.is_running, "it was over before the server was told to stop"
    rest = program.rest()
    assert len(rest) > 20
    assert rest[-1]["finish_reason"] == "length"
    assert server.wait(BUSY_STOP_S) == 0
