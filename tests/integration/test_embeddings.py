"""The model `embeddings` on a real server: against transformers itself, in Triton's batches, and with bad input."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.options import DEFAULT_MODEL, ROOT
from local.triton import LocalTriton
from tests.client.commands import run
from tests.integration.calls import (
    CALL_S,
    LONG,
    VOCAB_SIZE,
    Metrics,
    Stream,
    add_input,
    connect,
    eventually,
    post,
    request,
    stubs_of,
)
from tests.integration.servers import ServerFactory
from triton_chat import (
    AsyncChatClient,
    ChatClient,
    ContextLengthError,
    EmbeddingResult,
    InvalidRequestError,
    embeddings,
)

TEXTS = ["Hello!", "Who are you?", "你是谁？", "a " * 300, "Once upon a time, in a land far away", "😀"]
ATOL = 2e-5
"""Of components of float32 vectors of length 1."""

WIDTH = 192


@pytest.fixture
def client(triton: LocalTriton) -> Iterator[ChatClient]:
    with ChatClient(triton.grpc_address) as made:
        yield made


@pytest.fixture
def stub(triton: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with connect(triton) as made:
        yield made


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    """The mean of the model's last hidden states, one text at a time, by transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(DEFAULT_MODEL, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    with torch.inference_mode():
        encoded = [tokenizer(text, return_tensors="pt") for text in TEXTS]
        means = [model(input_ids=tokens.input_ids).last_hidden_state[0].mean(0) for tokens in encoded]
        return torch.nn.functional.normalize(torch.stack(means)).numpy()


def test_vectors_are_those_of_transformers(client: ChatClient, reference: np.ndarray) -> None:
    result = client.embed(TEXTS)
    np.testing.assert_allclose(result.embeddings, reference, atol=ATOL)
    np.testing.assert_allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-6)


def test_token_ids_are_the_same_text(client: ChatClient) -> None:
    ids = [client.tokenize(text=text).token_ids for text in TEXTS]
    by_text, by_ids = client.embed(TEXTS), client.embed(ids)
    np.testing.assert_allclose(by_ids.embeddings, by_text.embeddings, atol=ATOL)
    assert by_ids.num_tokens == by_text.num_tokens == [len(row) for row in ids]


def test_dimensions(client: ChatClient) -> None:
    whole, part = client.embed(TEXTS), client.embed(TEXTS, dimensions=16)
    expected = whole.embeddings[:, :16] / np.linalg.norm(whole.embeddings[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(part.embeddings, expected, atol=ATOL)


async def embed_each(server: LocalTriton, texts: list[str]) -> list[EmbeddingResult | Exception]:
    """Each text as a request of its own, all at the same time, with the same inputs, so that Triton batches them."""
    async with AsyncChatClient(server.grpc_address) as client:
        calls = (client.embed([text], dimensions=8 if index % 3 else WIDTH) for index, text in enumerate(texts))
        return await asyncio.gather(*calls, return_exceptions=True)


async def test_triton_makes_batches_and_they_change_nothing(triton: LocalTriton, client: ChatClient) -> None:
    texts = [TEXTS[index % len(TEXTS)] for index in range(96)]
    before = Metrics(triton)
    results = await embed_each(triton, texts)
    # Triton counts a batch after it has answered.
    eventually(lambda: (Metrics(triton) - before)("nv_inference_count_total", model="embeddings") == 96, within=5)
    grown = Metrics(triton) - before
    assert grown("nv_inference_exec_count_total", model="embeddings") < 24
    alone = {text: client.embed([text]).embeddings[0] for text in TEXTS}
    for index, (text, result) in enumerate(zip(texts, results, strict=True)):
        assert isinstance(result, EmbeddingResult)
        expected = alone[text][: 8 if index % 3 else WIDTH]
        np.testing.assert_allclose(result.embeddings[0], expected / np.linalg.norm(expected), atol=ATOL)


async def test_bad_requests_in_a_batch_fail_alone(triton: LocalTriton, client: ChatClient) -> None:
    bad = {0: "", 7: "a\0b", 20: "word " * 3000}
    texts = [bad.get(index, "Hello!") for index in range(60)]
    results = await embed_each(triton, texts)
    assert [index for index, result in enumerate(results) if isinstance(result, Exception)] == list(bad)
    assert str(results[0]) == "text: empty; at least one character is required"
    assert isinstance(results[20], ContextLengthError)
    assert str(results[20]) == "text: 3003 tokens given; this model's maximum context length is 2048 tokens"
    expected = client.embed(["Hello!"], dimensions=8).embeddings
    for index in (1, 8, 19, 59):
        np.testing.assert_allclose(results[index].embeddings, expected, atol=ATOL)


def test_a_bad_row_is_named(client: ChatClient) -> None:
    with pytest.raises(InvalidRequestError, match=r"^row 99: text: empty"):
        client.embed(["a"] * 99 + [""] + ["a"] * 9)


def elements(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def int32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


Tensor = tuple[str, str, list[int], bytes]
A: Tensor = ("text", "BYTES", [1, 1], elements(b"a"))
IDS: Tensor = ("token_ids", "BYTES", [1, 1], elements(b"[5]"))

# Name -> tensors, and what the error must say.
REFUSED: dict[str, tuple[list[Tensor], str]] = {
    "nothing": ([], ""),
    "only dimensions": (
        [("dimensions", "INT32", [1, 1], int32(4))],
        "exactly one of text and token_ids is required, neither",
    ),
    "both": ([A, IDS], "exactly one of text and token_ids is required, both"),
    "not UTF-8": ([("text", "BYTES", [1, 1], elements(b"ab\xff"))], "text: not valid UTF-8 at byte 2"),
    "ids not JSON": ([("token_ids", "BYTES", [1, 1], elements(b"[1"))], "token_ids: not JSON"),
    "ids nested": ([("token_ids", "BYTES", [1, 1], elements(b"[" * 100_000))], "token_ids: nested too deeply"),
    "no ids": ([("token_ids", "BYTES", [1, 1], elements(b"[]"))], "token_ids: no tokens"),
    "no such id": (
        [("token_ids", "BYTES", [1, 1], elements(b"[%d]" % VOCAB_SIZE))],
        f"token id {VOCAB_SIZE} is not in the vocabulary",
    ),
    "huge text": ([("text", "BYTES", [1, 1], elements(b"a" * 300_000))], "text: 300000 bytes given"),
    "no dimensions": ([A, ("dimensions", "INT32", [1, 1], int32(0))], "dimensions: 0 given; allowed are 1 to 192"),
    "too many": ([A, ("dimensions", "INT32", [1, 1], int32(193))], "dimensions: 193 given; allowed are 1 to 192"),
    "dimensions that differ": (
        [("text", "BYTES", [2, 1], elements(b"a", b"b")), ("dimensions", "INT32", [2, 1], int32(4, 5))],
        "dimensions: 4 and 5 given",
    ),
    "too many rows": ([("text", "BYTES", [65, 1], elements(*[b"a"] * 65))], "batch-size must be <= 64"),
    "no rows": ([("text", "BYTES", [0, 1], b"")], "got 0"),
    "two texts a row": ([("text", "BYTES", [1, 2], elements(b"a", b"b"))], "unexpected shape"),
    "no batch dimension": ([("text", "BYTES", [1], elements(b"a"))], "unexpected shape"),
    "rows that do not match": ([A, ("dimensions", "INT32", [2, 1], int32(4, 4))], "batch"),
    "wrong type": ([("dimensions", "FP32", [1, 1], b"\0" * 4), A], "data-type is 'FP32'"),
    "unknown tensor": ([A, ("bogus", "BYTES", [1, 1], elements(b"a"))], "unexpected inference input 'bogus'"),
    "text shorter than it says": ([("text", "BYTES", [1, 1], struct.pack("<I", 9) + b"a")], "incomplete string"),
}


def message(tensors: list[Tensor]) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="embeddings")
    for tensor in tensors:
        add_input(made, *tensor)
    return made


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said(stub: GRPCInferenceServiceStub, case: str) -> None:
    tensors, part = REFUSED[case]
    with pytest.raises(grpc.RpcError) as failure:
        stub.ModelInfer(message(tensors), timeout=CALL_S)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert part in failure.value.details()
    assert ".py" not in failure.value.details()


def test_an_unknown_parameter_is_refused_by_name(stub: GRPCInferenceServiceStub) -> None:
    made = message([A])
    made.parameters["normalize"].bool_param = False
    with pytest.raises(grpc.RpcError, match=r"normalize: unknown parameter \(value False\)"):
        stub.ModelInfer(made, timeout=CALL_S)


def test_garbage_does_not_kill_the_model(triton: LocalTriton, client: ChatClient) -> None:
    stubs, before, dice = stubs_of(triton), client.embed(["a"]), random.Random(4)
    with connect(triton) as stub:
        for _ in range(200):
            call = stub.ModelInfer.future(message(garbage(dice)), timeout=CALL_S)
            assert call.code() in {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}, call.details()
    np.testing.assert_allclose(client.embed(["a"]).embeddings, before.embeddings, atol=ATOL)
    assert (stubs_of(triton), triton.poll()) == (stubs, None)


def garbage(dice: random.Random) -> list[Tensor]:
    """Half sense, half nonsense."""
    tensors: list[Tensor] = []
    for name in dice.sample(["text", "token_ids", "dimensions", "bogus"], dice.randint(1, 3)):
        rows = dice.randint(1, 3)
        contents = [dice.choice([dice.randbytes(dice.randint(0, 9)), b"cat", b"[5, 6]", b"[]"]) for _ in range(rows)]
        if name == "dimensions":
            tensors.append((name, "INT32", [rows, 1], int32(*dice.choices([0, 1, 8, 2**31 - 1, -(2**31)], k=rows))))
        elif dice.random() < 0.8:
            tensors.append((name, "BYTES", [rows, 1], elements(*contents)))
        else:
            shape = [dice.randint(-1, 3) for _ in range(dice.randint(0, 3))]
            tensors.append((name, dice.choice(["BYTES", "FP32", "?"]), shape, dice.randbytes(dice.randint(0, 40))))
    return tensors


def test_generate_over_http(triton: LocalTriton, client: ChatClient) -> None:
    url = f"{triton.http_url}/v2/models/embeddings/generate"
    status, body = post(url, {"text": "你是谁？", "dimensions": 4})
    answer: dict[str, Any] = json.loads(body)
    assert status == 200
    expected = client.embed(["你是谁？"], dimensions=4)
    np.testing.assert_allclose(answer["embedding"], expected.embeddings[0], atol=ATOL)
    assert answer["num_tokens"] == expected.num_tokens[0]
    status, body = post(url, {"text": ""})
    assert status == 400
    assert "text: empty" in body


def test_the_command(triton: LocalTriton) -> None:
    done = run(triton.grpc_address, "embed", "Who are you?", "你是谁？", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["dimensions"], len(document["data"])) == (0, WIDTH, 2)
    refused = run(triton.grpc_address, "embed", "a", "--dimensions", "1000")
    assert refused.returncode == 2
    assert "dimensions: 1000 given; allowed are 1 to 192" in refused.stderr.decode()


def test_embedding_goes_on_while_the_chat_model_is_busy(triton: LocalTriton, client: ChatClient) -> None:
    expected = client.embed(TEXTS)
    with connect(triton) as stub:
        streams = [Stream(stub, request(text_input="Once", sampling_parameters=LONG)).started() for _ in range(4)]
        np.testing.assert_allclose(client.embed(TEXTS).embeddings, expected.embeddings, atol=ATOL)
        assert not all(stream.is_over for stream in streams)
        for stream in streams:
            stream.cancel()


def test_metrics(triton: LocalTriton, client: ChatClient) -> None:
    before = Metrics(triton)
    result = client.embed(TEXTS)
    with pytest.raises(InvalidRequestError):
        client.embed([""])
    grown = Metrics(triton) - before
    assert before.types["triton_chat_embeddings_batch_duration_seconds"] == "histogram"
    assert grown("triton_chat_embeddings_texts_total", model="embeddings") == len(TEXTS)
    assert grown("triton_chat_embeddings_tokens_total", model="embeddings") == sum(result.num_tokens)
    assert grown("triton_chat_embeddings_batch_duration_seconds_count", model="embeddings") == 1


def test_the_client_knows_what_it_is(client: ChatClient) -> None:
    assert {model.name: model.kind for model in client.models()}["embeddings"] == "embeddings"


def test_a_checkpoint_of_sentence_transformers(start_triton: ServerFactory, tmp_path: Path) -> None:
    from embedder.config import EmbedderConfig
    from embedder.parse import WireRequest
    from embedder.service import Answer, EmbeddingService
    from tests.embeddings import checkpoints

    checkpoint = checkpoints.save(tmp_path / "bert", checkpoints.bert())
    checkpoints.with_recipe(checkpoint, checkpoints.flags("cls_token"), settings={"max_seq_length": 12})
    settings = tmp_path / "embedder.json"
    settings.write_text(json.dumps({"model": "bert", "threads": 1}))
    server = start_triton(
        extra_env={"TRITON_CHAT_EMBEDDINGS_CONFIG": str(settings), "TRITON_CHAT_EMBEDDINGS_MODEL": ""},
        models=("embeddings",),
    )
    service = EmbeddingService(EmbedderConfig(model=str(checkpoint), device="cpu", pooling="cls"))
    (expected,) = service.answer([WireRequest(text=[b"the cat sat", "你好".encode()])])
    service.close()
    assert isinstance(expected, Answer)
    with ChatClient(server.grpc_address) as client:
        result = client.embed(["the cat sat", "你好"])
        np.testing.assert_allclose(result.embeddings, expected.embeddings, atol=ATOL)
        with pytest.raises(ContextLengthError, match=r"text: 13 tokens given; .* maximum context length is 12 tokens"):
            client.embed(["cat " * 11])
        assert client.embed(["cat"] * embeddings.MAX_ROWS).embeddings.shape == (64, 32)
    assert server.stop() == 0


@pytest.mark.parametrize("break_canary", [False, True], ids=["one batch", "for good"])
def test_a_failing_model(start_triton: ServerFactory, tmp_path: Path, break_canary: bool) -> None:
    """A text that breaks the forward pass is its request's own error; what is broken for good stops the server."""
    server = start_triton(
        extra_env={"BREAK_FOR_GOOD": str(int(break_canary))},
        repository=broken_repository(tmp_path / "repository"),
        models=("embeddings",),
    )
    with ChatClient(server.grpc_address) as client:
        good = client.embed(["Hello!"])
        with pytest.raises(Exception, match="internal error: the model failed on this text"):
            client.embed([[7, 7, 7]])
        if break_canary:
            eventually(lambda: server.poll() is not None, within=20)
        else:
            np.testing.assert_allclose(client.embed(["Hello!"]).embeddings, good.embeddings, atol=ATOL)


def broken_repository(folder: Path) -> Path:
    """Its encoder cannot do three sevens and, if the environment says so, nothing after them."""
    shutil.copytree(ROOT / "model_repository" / "embeddings", folder / "embeddings")
    encoder = folder / "embeddings" / "1" / "embedder" / "encoder.py"
    encoder.write_text(encoder.read_text() + BREAK)
    return folder


BREAK = """

def _broken(self, rows, _forward=Encoder._forward):
    self.is_broken = getattr(self, "is_broken", False) and os.environ["BREAK_FOR_GOOD"] == "1"
    if self.is_broken or [7, 7, 7] in rows:
        self.is_broken = True
        raise RuntimeError("the device is gone")
    return _forward(self, rows)

Encoder._forward = _broken
"""
