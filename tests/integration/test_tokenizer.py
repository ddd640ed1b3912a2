"""The Triton model `tokenizer`, and prompts as token ids: what one says, the other takes."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.options import DEFAULT_MODEL
from local.triton import LocalTriton
from tests.integration.calls import (
    LONG,
    VOCAB_SIZE,
    Result,
    Stream,
    add_input,
    ask,
    chat,
    connect,
    infer,
    post,
    request,
    stubs_of,
)
from tests.integration.servers import REPOSITORY, ServerFactory
from triton_chat import AsyncChatClient, ChatClient, ContextLengthError, ModelNotFoundError

TEXT = "Once upon a time 你好 🙂"
HELLO = chat("你是谁？")
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture
def client(triton: LocalTriton) -> Iterator[ChatClient]:
    with ChatClient(triton.grpc_address) as made:
        yield made


@pytest.fixture
def stub(triton: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with connect(triton) as made:
        yield made


def tokenizer_request(parameters: dict[str, object] | None = None, **inputs: bytes) -> pb.ModelInferRequest:
    asked = request("tokenizer", parameters=parameters)
    for name, value in inputs.items():
        add_input(asked, name, "BYTES", [1], struct.pack("<I", len(value)) + value)
    return asked


# What it says.


def test_text_and_back(client: ChatClient) -> None:
    tokens = client.tokenize(text=TEXT)
    assert (tokens.text, tokens.max_model_len) == (TEXT, 2048)
    assert client.detokenize(tokens.token_ids) == tokens


def test_messages_become_the_prompt_that_chat_answers(client: ChatClient) -> None:
    tokens = client.tokenize(HELLO)
    assert tokens.text == "<|begin|><|user|>你是谁？<|end|><|assistant|>"
    assert client.tokenize(HELLO, add_generation_prompt=False).text == "<|begin|><|user|>你是谁？<|end|>"
    assert client.detokenize(tokens.token_ids).text == tokens.text
    answer = client.generate(HELLO, **GREEDY)
    assert answer.num_input_tokens == len(tokens.token_ids)
    by_ids = client.generate(prompt_token_ids=tokens.token_ids, **GREEDY)
    assert (by_ids.text, by_ids.num_input_tokens) == (answer.text, answer.num_input_tokens)


def test_its_context_is_the_one_that_chat_enforces(client: ChatClient) -> None:
    limit = client.tokenize(text="x").max_model_len
    ids = [client.tokenize(text=" the").token_ids[0]] * limit
    with pytest.raises(
        ContextLengthError, match=f"has {limit} tokens; this model's maximum context length is {limit} tokens"
    ):
        client.generate(prompt_token_ids=ids)
    assert client.generate(prompt_token_ids=ids[1:]).num_input_tokens == limit - 1


def test_special_tokens_and_nothing(client: ChatClient) -> None:
    assert client.tokenize(text="<|end|>").token_ids == (5,)
    assert client.tokenize(text="").token_ids == client.detokenize([]).token_ids == ()


def test_generate_of_tritons_http(triton: LocalTriton, client: ChatClient) -> None:
    body = {"messages": json.dumps(HELLO), "parameters": {"add_generation_prompt": False}}
    status, text = post(triton.http_url + "/v2/models/tokenizer/generate", body)
    answer = json.loads(text)
    expected = client.tokenize(HELLO, add_generation_prompt=False)
    assert (status, json.loads(answer["token_ids"])) == (200, list(expected.token_ids))
    assert (answer["text_output"], answer["max_model_len"]) == (expected.text, 2048)


async def test_many_at_once(triton: LocalTriton) -> None:
    texts = [f"text {n} " * (n % 50) for n in range(300)]
    async with AsyncChatClient(triton.grpc_address) as client:
        found = await asyncio.gather(*(client.tokenize(text=text) for text in texts))
        back = await asyncio.gather(*(client.detokenize(tokens.token_ids) for tokens in found))
    assert [tokens.text for tokens in back] == texts


def test_generation_does_not_keep_it(stub: GRPCInferenceServiceStub, client: ChatClient) -> None:
    """The engine is full and more waits in Triton's queue: that is `chat`'s affair alone."""
    streams = [Stream(stub, request(text_input="Once", sampling_parameters=LONG)) for _ in range(80)]
    streams[0].started()
    began = time.monotonic()
    for _ in range(20):
        client.tokenize(HELLO)
    took = time.monotonic() - began
    busy = not any(stream.is_over for stream in streams)
    for stream in streams:
        stream.cancel()
    for stream in streams:
        stream.wait()
    assert busy, "the engine was not busy"
    assert took < 5


# The echo and the template, through `chat` and `chat_unary`.


def prompts(stub: GRPCInferenceServiceStub, asked: dict[str, object]) -> set[str]:
    """The prompt that precedes the answer, by both models."""
    sampling = {"temperature": 0, "max_tokens": 1, **asked.pop("sampling", {})}
    inputs = {**asked, "sampling_parameters": sampling}
    results: list[tuple[Result, Result]] = [
        (
            ask(stub, request(**inputs, exclude_input_in_output=False)),
            ask(stub, request(**inputs)),
        ),
        (
            infer(stub, request("chat_unary", **inputs, exclude_input_in_output=False)),
            infer(stub, request("chat_unary", **inputs)),
        ),
    ]
    return {with_prompt.text.removesuffix(without.text) for with_prompt, without in results}


def test_the_echo_of_token_ids_is_their_text(stub: GRPCInferenceServiceStub, client: ChatClient) -> None:
    ids = list(client.tokenize(HELLO).token_ids)
    assert prompts(stub, {"prompt_token_ids": ids}) == {"<|begin|><|user|>你是谁？<|end|><|assistant|>"}


def test_the_template_need_not_begin_the_answer(stub: GRPCInferenceServiceStub) -> None:
    asked = {"messages": HELLO, "sampling": {"add_generation_prompt": False}}
    assert prompts(stub, asked) == {"<|begin|><|user|>你是谁？<|end|>"}


def test_options_of_the_sdk(client: ChatClient) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    without = client.generate(HELLO, add_generation_prompt=False, headers=headers, **GREEDY)
    by_ids = client.generate(
        prompt_token_ids=client.tokenize(HELLO, add_generation_prompt=False, headers=headers).token_ids, **GREEDY
    )
    assert (without.text, without.num_input_tokens) == (by_ids.text, by_ids.num_input_tokens)


def test_the_client_tells_the_models_apart(client: ChatClient) -> None:
    kinds = {model.name: model.kind for model in client.models()}
    assert {"chat": "chat", "chat_unary": "chat_unary", "tokenizer": "tokenizer"}.items() <= kinds.items()
    assert kinds["vllm_model"] == "other"  # it is for clients of Triton's vLLM backend


# Several chat models, none of which is loaded.


def test_each_chat_model_has_its_own_tokenizer(start_triton: ServerFactory, tmp_path: Path) -> None:
    repository, settings = tmp_path / "repository", tmp_path / "settings"
    repository.mkdir()
    settings.mkdir()
    for name, target in (("tokenizer", "tokenizer"), ("chat", "chat"), ("other", "chat")):
        (repository / name).symlink_to(REPOSITORY / target)
    for name, limit in (("chat", 100), ("other", 200)):
        (settings / f"{name}.json").write_text(json.dumps({"model": str(DEFAULT_MODEL), "max_model_len": limit}))
    server = start_triton(
        extra_env={"TRITON_CHAT_ENGINE_CONFIG": str(settings)}, repository=repository, models=("tokenizer",)
    )
    with ChatClient(server.grpc_address) as client:
        assert client.tokenize(text="x").max_model_len == 100
        assert client.tokenize(text="x", model="other").max_model_len == 200
        with pytest.raises(
            ModelNotFoundError, match=r"model: no chat model has the name 'nope'; there are chat, other"
        ):
            client.tokenize(text="x", model="nope")
        (settings / "other.json").unlink()
        assert client.detokenize([1], model="other").max_model_len == 200  # kept


# Bad input.

REFUSED: dict[str, tuple[pb.ModelInferRequest, str, str]] = {
    "nothing": (
        tokenizer_request(model=b"chat"),
        "INVALID_ARGUMENT",
        "exactly one of messages, text_input, token_ids is required, none given",
    ),
    "two": (
        tokenizer_request(text_input=b"a", token_ids=b"[1]"),
        "INVALID_ARGUMENT",
        "exactly one of messages, text_input, token_ids is required, text_input and token_ids given",
    ),
    "unknown model": (
        tokenizer_request(model=b"gpt", text_input=b"a"),
        "NOT_FOUND",
        "model: no chat model has the name 'gpt'; there are chat",
    ),
    "a path for a model": (tokenizer_request(model=b"../chat", text_input=b"a"), "NOT_FOUND", "'../chat'"),
    "unknown parameter": (
        tokenizer_request({"max_tokens": 3}, text_input=b"a"),
        "INVALID_ARGUMENT",
        "max_tokens: unknown parameter (value 3); allowed are add_generation_prompt, continue_final_message",
    ),
    "option of a wrong type": (
        tokenizer_request({"add_special_tokens": "yes"}, text_input=b"a"),
        "INVALID_ARGUMENT",
        "add_special_tokens: must be true or false (got 'yes')",
    ),
    "option for messages": (
        tokenizer_request({"add_generation_prompt": True}, text_input=b"a"),
        "INVALID_ARGUMENT",
        "add_generation_prompt: only for messages (got True)",
    ),
    "bad messages": (tokenizer_request(messages=b"[{}]"), "INVALID_ARGUMENT", "messages[0].role: Field required"),
    "text not UTF-8": (tokenizer_request(text_input=b"\xff"), "INVALID_ARGUMENT", "text_input: not valid UTF-8"),
    "NUL": (tokenizer_request(text_input=b"a\0"), "INVALID_ARGUMENT", "text_input: holds a NUL character"),
    "too long": (tokenizer_request(text_input=b"x" * (2**20 + 1)), "INVALID_ARGUMENT", "at most 1048576 are allowed"),
    "ids not JSON": (tokenizer_request(token_ids=b"1,2"), "INVALID_ARGUMENT", "token_ids: not JSON"),
    "ids of no token": (
        tokenizer_request(token_ids=b"[%d]" % VOCAB_SIZE),
        "INVALID_ARGUMENT",
        f"token_ids: token id {VOCAB_SIZE} is not in the vocabulary; allowed are 0 to {VOCAB_SIZE - 1}",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_named(stub: GRPCInferenceServiceStub, case: str) -> None:
    asked, code, fragment = REFUSED[case]
    result = infer(stub, asked)
    assert (result.answers, result.code) == ([], code)
    assert fragment in result.error
    assert str(REPOSITORY) not in result.error


def test_a_batch_is_refused_by_triton(stub: GRPCInferenceServiceStub) -> None:
    asked = request("tokenizer")
    add_input(asked, "text_input", "BYTES", [2], (struct.pack("<I", 1) + b"a") * 2)
    assert infer(stub, asked).code == "INVALID_ARGUMENT"


def test_garbage_does_not_kill_it(triton: LocalTriton, stub: GRPCInferenceServiceStub, client: ChatClient) -> None:
    stubs, dice = stubs_of(triton), random.Random(3)
    for _ in range(200):
        names = dice.sample(["model", "messages", "text_input", "token_ids"], dice.randint(1, 2))
        noise = {name: dice.randbytes(dice.randint(0, 30)) for name in names}
        assert code_of(stub, tokenizer_request(**noise)) in {"", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert client.tokenize(text="x").text == "x"
    assert (stubs_of(triton), triton.poll()) == (stubs, None)


def code_of(stub: GRPCInferenceServiceStub, asked: pb.ModelInferRequest) -> str:
    """How it failed; empty where it did not."""
    try:
        stub.ModelInfer(asked, timeout=60)
    except grpc.RpcError as error:
        return str(error.code().name)
    return ""
