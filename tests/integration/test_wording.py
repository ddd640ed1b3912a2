"""A server whose models say everything in other words: at the doors nothing differs but the words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from local.gateway import LocalGateway
from local.triton import LocalTriton
from tests.integration.servers import REPOSITORY, GatewayFactory, ServerFactory
from triton_chat import ChatClient, SamplingParams, TritonChatError

REWORDED = """

import random as _random

_init = ChatError.__init__


def _in_other_words(self, sentence, **place):
    _init(self, " ".join(_random.sample([*"abcdefgh", "row 9:", "text:", "[code=overloaded]", "的"], 6)), **place)


ChatError.__init__ = _in_other_words
"""
LONG = "word " * 3000
USER = {"role": "user", "content": "hi"}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "temperature": (CHAT, {"messages": [USER], "temperature": 2.5}),
    "template": (CHAT, {"messages": [USER, USER | {"content": "a\0b"}]}),
    "stop": (CHAT, {"messages": [USER], "stop": ["x" * 256 + "y"]}),
    "context of a conversation": (CHAT, {"messages": [USER | {"content": LONG}]}),
    "tokens": (CHAT, {"messages": [USER], "max_completion_tokens": 4000}),
    "streamed": (CHAT, {"messages": [USER], "stream": True, "min_tokens": 9, "max_tokens": 3}),
    "token ids": (COMPLETIONS, {"prompt": [99_999]}),
    "one of several prompts": (COMPLETIONS, {"prompt": ["a", LONG]}),
    "logit_bias": (COMPLETIONS, {"prompt": "a", "logit_bias": {"99999": 1}}),
    "a text to embed": ("/v1/embeddings", {"input": ["a", "b", LONG]}),
    "dimensions": ("/v1/embeddings", {"input": "a", "dimensions": 9000}),
    "tokens to read": ("/detokenize", {"tokens": [99_999]}),
    "text to split": ("/tokenize", {"prompt": "a\0b"}),
}


def test_nothing_but_the_wording_changes(
    triton: LocalTriton,
    gateway: LocalGateway,
    start_triton: ServerFactory,
    start_gateway: GatewayFactory,
    tmp_path: Path,
) -> None:
    repository = tmp_path / "reworded"
    shutil.copytree(REPOSITORY, repository, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    with (repository / "chat" / "1" / "chat_engine" / "errors.py").open("a") as module:
        module.write(REWORDED)
    other_triton = start_triton({"threads": 1}, repository=repository)
    other = start_gateway(other_triton)
    for name, (path, body) in REQUESTS.items():
        usual, changed = (answer(door, path, body) for door in (gateway, other))
        assert usual.pop("message") != changed.pop("message"), name
        assert usual == changed, name
        assert usual["status"] == 400, name
    for model, extra in (("chat", {"temperature": 2.5}), ("chat", {"logprobs": 21}), ("chat_unary", {"top_p": 2})):
        usual, changed = (refusal(server, model, extra) for server in (triton, other_triton))
        assert usual.pop("sentence") != changed.pop("sentence")
        assert usual == changed
    exits = [ask_by_command(server).returncode for server in (triton, other_triton)]
    assert exits == [2, 2]


def answer(gateway: LocalGateway, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """How the gateway refuses."""
    model = "embeddings" if "embed" in path else "chat"
    response = httpx2.post(gateway.url + path, json={"model": model, **body}, timeout=60)
    return {"status": response.status_code, "retry": response.headers.get("retry-after"), **response.json()["error"]}


def refusal(triton: LocalTriton, model: str, sampling: dict[str, Any]) -> dict[str, Any]:
    """How the SDK refuses."""
    params = SamplingParams(**sampling)
    with ChatClient(triton.grpc_address) as client:
        ask = partial(client.generate, "hi") if model == "chat" else partial(client.generate_batch, ["hi", "you"])
        with pytest.raises(TritonChatError) as caught:
            ask(sampling=params)
    error = caught.value
    return {"kind": type(error), "code": error.code, "field": error.field, "row": error.row, "sentence": error.sentence}


def ask_by_command(triton: LocalTriton) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "triton_chat", "ask", "--url", triton.grpc_address, "--temperature", "3", "hi"]
    return subprocess.run(command, capture_output=True, check=False, timeout=60)
