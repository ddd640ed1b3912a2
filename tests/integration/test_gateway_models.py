"""What is not generation: models and aliases, embeddings, tokens, health, metrics."""

from __future__ import annotations

import asyncio
import base64
import random
import string

import httpx2
import numpy as np
import pytest
from openai import AsyncOpenAI, OpenAI
from prometheus_client.parser import text_string_to_metric_families

import triton_chat
from local.gateway import LocalGateway
from tests.integration.calls import chat, eventually
from tests.integration.openai_calls import WAYS, Asker, Way, options
from triton_chat import ChatClient

HELLO = chat("Hello!")
TEXTS = ["The moon is bright.", "月亮很亮。", "Kubernetes runs containers.", "🙂"]


@pytest.fixture
def http(gateway: LocalGateway) -> httpx2.Client:
    return httpx2.Client(base_url=gateway.url)


# Models.


def test_models_and_their_aliases(client: OpenAI) -> None:
    served = {model.id: model for model in client.models.list()}
    assert sorted(served) == ["chat", "embeddings", "gpt-4o-mini", "text-embedding-3-small"]
    for name, model in served.items():
        assert client.models.retrieve(name) == model
        assert (model.object, bool(model.owned_by)) == ("model", True)


@pytest.mark.parametrize("way", WAYS)
def test_an_alias_is_another_name(ask: Asker, way: Way) -> None:
    by_alias = ask("chat", way, model="gpt-4o-mini", messages=HELLO, temperature=0)
    assert by_alias.only.text == ask("chat", messages=HELLO, temperature=0).only.text
    assert by_alias.model == "gpt-4o-mini"


# Embeddings.


def test_embeddings_are_the_engines(client: OpenAI, engine: ChatClient) -> None:
    answer = client.embeddings.create(model="embeddings", input=TEXTS, encoding_format="float")
    expected = engine.embed(TEXTS)
    assert np.array([item.embedding for item in answer.data]) == pytest.approx(expected.embeddings, abs=1e-6)
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(expected.num_tokens)
    assert answer.model == "embeddings"


def test_base64_holds_the_same_floats(client: OpenAI) -> None:
    """The package asks for base64 by itself and decodes it."""
    plain = client.embeddings.create(model="embeddings", input=TEXTS, encoding_format="float").data
    raw = client.embeddings.create(model="embeddings", input=TEXTS, encoding_format="base64").data
    decoded = client.embeddings.create(model="text-embedding-3-small", input=TEXTS).data
    for one, two, three in zip(plain, raw, decoded, strict=True):
        assert isinstance(two.embedding, str)
        floats = np.frombuffer(base64.b64decode(two.embedding), "<f4")
        assert floats.tolist() == pytest.approx(one.embedding)
        assert three.embedding == pytest.approx(one.embedding)


def test_dimensions(client: OpenAI, engine: ChatClient) -> None:
    answer = client.embeddings.create(model="embeddings", input=TEXTS, dimensions=16)
    got = np.array([item.embedding for item in answer.data])
    assert got == pytest.approx(engine.embed(TEXTS, dimensions=16).embeddings, abs=1e-6)
    assert np.linalg.norm(got, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    assert got.shape == (len(TEXTS), 16)


def test_one_text_and_token_ids(client: OpenAI, engine: ChatClient) -> None:
    ids = [list(engine.tokenize(text=text).token_ids) for text in TEXTS[:2]]
    expected = engine.embed(ids).embeddings
    one = client.embeddings.create(model="embeddings", input=ids[0]).data
    two = client.embeddings.create(model="embeddings", input=ids, user="me").data
    text = client.embeddings.create(model="embeddings", input=TEXTS[0]).data
    assert (len(one), len(two), len(text)) == (1, 2, 1)
    assert one[0].embedding == pytest.approx(expected[0], abs=1e-6)
    assert np.array([item.embedding for item in two]) == pytest.approx(expected, abs=1e-6)
    assert text[0].embedding == pytest.approx(engine.embed(TEXTS[:1]).embeddings[0], abs=1e-6)


async def test_many_texts_at_once(gateway: LocalGateway, engine: ChatClient) -> None:
    """More than the model takes in one batch, from several callers."""
    texts = [f"text number {number}" for number in range(100)]
    async with AsyncOpenAI(**options(gateway)) as client:
        calls = [client.embeddings.create(model="embeddings", input=texts) for _ in range(4)]
        answers = await asyncio.gather(*calls)
    expected = engine.embed(texts).embeddings
    for answer in answers:
        assert np.array([item.embedding for item in answer.data]) == pytest.approx(expected, abs=1e-5)


# Tokens.


def tokens_of(http: httpx2.Client, **body: object) -> list[int]:
    answer = http.post("/tokenize", json={"model": "chat", **body}).raise_for_status().json()
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 2048
    return answer["tokens"]


def text_of(http: httpx2.Client, tokens: list[int]) -> str:
    return http.post("/detokenize", json={"model": "chat", "tokens": tokens}).raise_for_status().json()["prompt"]


def test_there_and_back(http: httpx2.Client) -> None:
    dice = random.Random(5)
    alphabet = string.ascii_letters + " .,\n你好世界月亮人工智能🙂é"
    texts = ["Once upon a time", "你好，世界！", *("".join(dice.choices(alphabet, k=50)) for _ in range(10))]
    for text in texts:
        assert text_of(http, tokens_of(http, prompt=text, add_special_tokens=False)) == text


def test_messages_are_tokenised_as_chat_does(http: httpx2.Client, engine: ChatClient, ask: Asker) -> None:
    messages = [
        {"role": "developer", "content": "Kurz."},
        {"role": "user", "content": [text_part("你好"), text_part("!")]},
    ]
    plain = [{"role": "system", "content": "Kurz."}, *chat("你好\n!")]
    tokens = tokens_of(http, messages=messages)
    assert tokens == list(engine.tokenize(plain).token_ids)
    assert ask("chat", messages=messages, max_tokens=1).tokens[0] == len(tokens)
    shorter = tokens_of(http, messages=messages, add_generation_prompt=False)
    assert tokens[: len(shorter)] == shorter != tokens


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


# Operations.


def test_health_and_version(http: httpx2.Client) -> None:
    assert http.get("/health/live").json() == {"status": "live"}
    assert http.get("/health/ready").json() == {"status": "ready", "models": ["chat", "gpt-4o-mini"]}
    assert http.get("/version").json() == {"version": triton_chat.__version__}


def test_the_request_id_comes_back(client: OpenAI) -> None:
    given = client.chat.completions.with_raw_response.create(
        model="chat", messages=HELLO, max_tokens=1, extra_headers={"X-Request-Id": "mine-17"}
    )
    assert given.headers["x-request-id"] == "mine-17"
    assert given.parse().id == "chatcmpl-mine-17"
    assert given.parse()._request_id == "mine-17"
    made = [client.models.with_raw_response.list().headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]


def test_metrics_count_requests_and_streams(http: httpx2.Client, ask: Asker) -> None:
    labels = {"route": "/v1/chat/completions", "method": "POST", "status": "200"}
    before = counted(http, "triton_chat_gateway_requests_total", labels)
    for way in WAYS:
        ask("chat", way, messages=HELLO, max_tokens=2)
    # A stream is counted after its last byte, which the caller may read first.
    eventually(lambda: counted(http, "triton_chat_gateway_requests_total", labels) == before + len(WAYS), within=2)
    eventually(lambda: counted(http, "triton_chat_gateway_open_streams", {}) == 0, within=2)
    assert counted(http, "triton_chat_gateway_time_to_first_chunk_seconds_count", {}) >= 2


def counted(http: httpx2.Client, name: str, labels: dict[str, str]) -> float:
    families = text_string_to_metric_families(http.get("/metrics").raise_for_status().text)
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
