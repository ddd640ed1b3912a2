"""A server whose models say something else in every error: nobody but a person who reads it may notice."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import httpx2
import pytest

from local.gateway import LocalGateway
from local.triton import LocalTriton
from tests.client.commands import run
from tests.integration.calls import VOCAB_SIZE, Result, ask, connect, infer, request
from tests.integration.openai_calls import CALL_S
from tests.integration.servers import REPOSITORY, GatewayFactory, ServerFactory
from tests.integration.test_gateway_errors import BY_THE_MODEL
from triton_chat import ChatClient
from triton_chat.errors import TritonChatError, from_status, from_text
from triton_chat.types import SamplingParams

OTHER_WORDS = """

import random

_TRAPS = (
    "Exceeds maximum queue size", "unknown model", "the request was cancelled", "server is stopping", "top_k: ",
    "row 5: ", "[code=overloaded]", "field=x", "maximum context length is 5 tokens", "tls", "socket closed", "\\u4e2d",
)
_make = ChatError.__init__
_dice = random.Random(10)


def _make_reworded(self, sentence, **place):
    _make(self, " ".join(_dice.choices(_TRAPS, k=4)), **place)


ChatError.__init__ = _make_reworded
"""
Told = tuple[object, ...]
"""How a mistake is refused, but for the message."""


@pytest.fixture(scope="module")
def reworded(able_to_serve: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    folder = tmp_path_factory.mktemp("reworded")
    repository = folder / "repository"
    shutil.copytree(REPOSITORY, repository, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    with (repository / "chat" / "1" / "chat_engine" / "errors.py").open("a") as errors:
        errors.write(OTHER_WORDS)
    servers = ServerFactory(folder)
    try:
        yield servers({"threads": 1}, repository=repository)
    finally:
        servers.stop_all()


@pytest.fixture(scope="module")
def gateway_of_reworded(reworded: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    gateways = GatewayFactory(tmp_path_factory.mktemp("gateway"))
    try:
        yield gateways(reworded)
    finally:
        gateways.stop_all()


def refused_by_gateway(gateway: LocalGateway) -> tuple[list[Told], list[str]]:
    told, messages = [], []
    with httpx2.Client(base_url=gateway.url, timeout=CALL_S) as http:
        for bad in BY_THE_MODEL.values():
            answer = bad.send(http)
            error = answer.json()["error"]
            told.append((answer.status_code, error["type"], error["param"], error["code"]))
            messages.append(error["message"])
    return told, messages


def test_the_gateway_tells_the_same(gateway: LocalGateway, gateway_of_reworded: LocalGateway) -> None:
    expected, sentences = refused_by_gateway(gateway)
    found, others = refused_by_gateway(gateway_of_reworded)
    assert found == expected
    assert [one for one, other in zip(sentences, others, strict=True) if one == other] == []


CALLS: dict[str, Callable[[ChatClient], object]] = {
    "a parameter": lambda client: client.generate("hi", top_p=7),
    "the context": lambda client: client.generate("hi", max_tokens=10**8),
    "a text": lambda client: client.generate(prompt="a\0b"),
    "a role": lambda client: client.generate([{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]),  # type: ignore[list-item, typeddict-item]
    "a row": lambda client: client.generate_batch(["hi", "a\0b"]),
    "a parameter of a batch": lambda client: client.generate_batch(["hi"], sampling=SamplingParams(temperature=9)),
    "a text to embed": lambda client: client.embed(["a", "x " * 2500]),
    "dimensions": lambda client: client.embed(["a"], dimensions=5000),
    "a model at the tokenizer": lambda client: client.tokenize(text="a", model="nope"),
    "a token": lambda client: client.detokenize([VOCAB_SIZE]),
}


def refused_by_sdk(server: LocalTriton) -> tuple[dict[str, Told], list[str]]:
    told: dict[str, Told] = {}
    messages = []
    with ChatClient(server.grpc_address) as client:
        for name, call in CALLS.items():
            with pytest.raises(TritonChatError) as caught:
                call(client)
            told[name] = (caught.type, caught.value.code, caught.value.field, caught.value.row)
            messages.append(caught.value.sentence)
    return told, messages


def test_the_client_tells_the_same(triton: LocalTriton, reworded: LocalTriton) -> None:
    expected, sentences = refused_by_sdk(triton)
    found, others = refused_by_sdk(reworded)
    assert found == expected
    assert [one for one, other in zip(sentences, others, strict=True) if one == other] == []


UNKNOWN = {"text_input": "a", "sampling_parameters": {"a b=c] 中 [code=overloaded]": 5}}
"""No client of ours sends what it does not know."""


def refused_by_triton(server: LocalTriton) -> list[Told]:
    def read(result: Result) -> TritonChatError:
        return from_status(result.code, result.error, "host:8001") if result.code else from_text(result.error)

    with connect(server) as stub:
        several = request("vllm_model", text_input="a", sampling_parameters={"bogus": 1})
        for tensor in several.inputs:
            tensor.shape[:] = [1]
        results = [ask(stub, request(**UNKNOWN)), infer(stub, request("chat_unary", **UNKNOWN)), ask(stub, several)]
    return [(type(error), error.field, error.row) for error in map(read, results)]


def test_an_unknown_parameter_is_named_on_every_way(triton: LocalTriton, reworded: LocalTriton) -> None:
    expected = refused_by_triton(triton)
    assert [field for _, field, _ in expected] == ["a b=c] 中 [code=overloaded]"] * 2 + ["bogus"]
    assert refused_by_triton(reworded) == expected


@pytest.mark.parametrize("flags", [("--top-p", "7"), ("--max-tokens", "100000"), ("--model", "nope")])
def test_the_command_ends_with_the_same_code(
    triton: LocalTriton, reworded: LocalTriton, flags: tuple[str, ...]
) -> None:
    expected, found = (run(server.grpc_address, "ask", "hi", *flags).returncode for server in (triton, reworded))
    assert found == expected == 2
