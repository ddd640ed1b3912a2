"""A process in the container that dies or gets stuck: its callers hear of it, and the container ends with an error."""

from __future__ import annotations

import json
import time

import pytest

from tests.image.conftest import Image
from tests.image.containers import TINY, Containers, Running
from tools.images.podman import Podman

WITHIN_S = 10.0
LONG = {"max_tokens": 2000, "temperature": 0, "ignore_eos": True, "logit_bias": {"5": -100}}


@pytest.mark.parametrize(
    ("whose", "signal", "line"),
    [
        ("chat", "SIGKILL", "the process of the model 'chat' is dead; ending the server"),
        ("chat", "SIGSTOP", "the process of the model 'chat' has sent no heartbeat for 6 s; ending the server"),
        ("tokenizer", "SIGSEGV", "the process of the model 'tokenizer' is dead; ending the server"),
        ("tritonserver", "SIGSTOP", "tritonserver has not answered for 5 s; ending the server"),
        ("tritonserver", "SIGKILL", "tritonserver died of SIGKILL"),
    ],
)
def test_the_container_ends(
    podman: Podman, images: dict[str, Image], containers: Containers, whose: str, signal: str, line: str
) -> None:
    triton = containers.triton(
        f"--env=TRITON_CHAT_MODEL={TINY}", arguments=("serve", "--device=cpu", "--no-embeddings")
    )
    program = Running(podman, images["gateway"].name, triton, "grpc_stream.py", "chat", "Hello", json.dumps(LONG))
    try:
        program.line()
        assert len(triton.script("strike.py", whose, signal)) == 1
        began = time.monotonic()
        assert program.ends(WITHIN_S) != 0
        assert triton.wait(WITHIN_S) == (137 if line.endswith("SIGKILL") else 1)
        assert time.monotonic() - began < WITHIN_S
        assert triton.log().splitlines()[-1] == f"serve: {line}"
    finally:
        program.close()
