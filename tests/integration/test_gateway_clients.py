"""Habits of clients, through a real gateway in front of a real server."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from openai import OpenAI

from local.gateway import LocalGateway
from local.triton import LocalTriton
from tests.integration.calls import chat, post
from tests.integration.openai_calls import CALL_S, Asker
from tests.integration.servers import GatewayFactory
from triton_chat import ChatClient

HELLO: Any = chat("Hello!")
BODY = {"model": "chat", "messages": HELLO, "max_tokens": 4, "temperature": 0}
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture(scope="module")
def web(gateway: LocalGateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=CALL_S) as client:
        yield client


# The wire.


@pytest.mark.parametrize("option", ["--http2", "--http1.1", "--http1.0"])
def test_curl(gateway: LocalGateway, option: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    for stream in (False, True):
        asks = [f"{gateway.url}/v1/chat/completions", "--json", json.dumps({**BODY, "stream": stream})]
        found = subprocess.run([curl, "-sS", option, "-w", "%{http_code}", *asks], capture_output=True, check=True)
        assert found.stdout.endswith(b"data: [DONE]\n\n200" if stream else b"}200")


def test_java_offers_http2_with_every_request(gateway: LocalGateway) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAAB"}
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=CALL_S)
    for _ in range(3):
        headers = {**offer, "Content-Type": "application/json", "User-Agent": "Java-http-client/21"}
        connection.request("POST", "/v1/chat/completions", json.dumps(BODY), headers)
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["usage"]["completion_tokens"]) == (200, 4)
    connection.close()


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("HEAD", "/health"), ("POST", "/ping")])
def test_load_balancers_have_no_key(start_gateway: GatewayFactory, triton: LocalTriton, method: str, path: str) -> None:
    gateway = start_gateway(triton, API_KEYS="secret")
    assert httpx2.request(method, gateway.url + path).status_code == 200
    assert httpx2.get(f"{gateway.url}/v1/models").status_code == 401


# Evaluation and load tests.


def test_what_lm_evals_remote_tokenizer_asks(web: httpx2.Client, engine: ChatClient) -> None:
    info = web.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<|begin|>", "<|end|>", "<|pad|>")
    assert info["tokenizer_class"]
    assert "add_generation_prompt" in info["chat_template"]
    ids = web.post("/tokenize", json={"prompt": info["eos_token"], "add_special_tokens": False}).json()["tokens"]
    assert ids == list(engine.tokenize(text="<|end|>").token_ids)
    assert web.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "<|end|>"}
    no_paths = info | dict.fromkeys(("chat_template", "added_tokens_decoder"), "")  # tags have slashes
    assert "/" not in json.dumps(no_paths)


def test_the_names_of_tokens(web: httpx2.Client) -> None:
    answer = web.post("/tokenize", json={"prompt": "hi there", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["h", "i", "Ġthere"]
    assert len(answer["tokens"]) == answer["count"] == 3


def test_models_tell_their_checkpoint_and_context(client: OpenAI) -> None:
    for name in ("chat", "gpt-4o-mini"):
        card = client.models.retrieve(name).model_dump()
        assert (card["root"], card["max_model_len"], card["parent"], card["permission"]) == (
            "tiny-chat",
            2048,
            None,
            [],
        )
    assert client.models.retrieve("embeddings").model_dump()["root"] is None


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_guidellm_wants_usage_in_each_chunk(client: OpenAI, endpoint: str) -> None:
    asked: dict[str, Any] = {"model": "chat", "max_tokens": 40, "stream": True, "extra_body": {"ignore_eos": True}}
    asked["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    create = client.chat.completions.create if endpoint == "chat" else client.completions.create
    asked |= {"messages": HELLO} if endpoint == "chat" else {"prompt": "Hello"}
    *chunks, last = list(create(**asked))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert (counts[-1], last.usage.completion_tokens, last.choices) == (40, 40, [])


def test_fields_that_choose_nothing_do_not_change_the_answer(ask: Asker) -> None:
    inert = {
        "metadata": {"run": "1"}, "store": True, "service_tier": "flex", "prompt_cache_key": "k", "user": "u",
        "safety_identifier": "s", "parallel_tool_calls": True, "length_penalty": 1.0, "use_beam_search": False,
        "spaces_between_special_tokens": True, "include_stop_str_in_output": False, "truncate_prompt_tokens": None,
        "priority": 0, "request_id": "r", "bad_words": [], "logit_bias": None, "min_tokens": None, "top_k": -1,
    }  # fmt: skip
    fields: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 12}
    assert ask("chat", **fields, extra_body=inert).texts == ask("chat", **fields).texts


def test_the_newer_limit_wins(ask: Asker) -> None:
    fields: dict[str, Any] = {"messages": HELLO, "extra_body": {"ignore_eos": True}}
    assert ask("chat", **fields, max_tokens=9, max_completion_tokens=5).tokens[1] == 5


@pytest.mark.parametrize("seed", [-2, -(2**63)])
def test_a_negative_seed_is_that_of_the_same_64_bits(ask: Asker, seed: int) -> None:
    fields: dict[str, Any] = {"messages": HELLO, "max_tokens": 20, "temperature": 2.0}
    assert ask("chat", **fields, seed=seed).texts == ask("chat", **fields, seed=seed % 2**64).texts


# Embeddings of many texts.


@pytest.mark.parametrize("count", [1000, 2048])
def test_langchains_batch(client: OpenAI, engine: ChatClient, count: int) -> None:
    texts = [f"text number {index % 50}" for index in range(count)]
    answer = client.embeddings.create(model="embeddings", input=texts)
    assert [data.index for data in answer.data] == list(range(count))
    alone = engine.embed([texts[49]])
    assert answer.data[count - count % 50 - 1].embedding == pytest.approx(alone.embeddings[0].tolist(), abs=1e-5)
    assert answer.usage.prompt_tokens > count
    ids = [[70 + index % 50, 80] for index in range(count)]
    assert client.embeddings.create(model="embeddings", input=ids).usage.prompt_tokens == 2 * count


def test_others_are_served_meanwhile(web: httpx2.Client) -> None:
    """Those with one text do not wait for somebody's thousands."""
    many = {"model": "embeddings", "input": ["word " * 60] * 2048}
    answers: list[httpx2.Response] = []
    big = threading.Thread(target=lambda: answers.append(web.post(EMBEDDINGS, json=many)))
    big.start()
    served = 0
    while big.is_alive():
        assert web.post(EMBEDDINGS, json={"model": "embeddings", "input": "one"}).status_code == 200
        served += not answers
    big.join()
    assert (answers[0].status_code, len(answers[0].json()["data"])) == (200, 2048)
    assert served >= 5


def test_truncation(web: httpx2.Client, engine: ChatClient) -> None:
    words = engine.tokenize(text=" ".join(f"word{index}" for index in range(2000))).token_ids
    body: dict[str, Any] = {"model": "embeddings", "input": [list(words)]}
    assert web.post(EMBEDDINGS, json=body).status_code == 400
    for fields, kept in (
        ({"truncate_prompt_tokens": -1}, words[:2048]),
        ({"truncate_prompt_tokens": 9}, words[:9]),
        ({"truncate_prompt_tokens": 9, "truncation_side": "left"}, words[-9:]),
    ):
        answer = web.post(EMBEDDINGS, json=body | fields).json()
        assert answer["usage"]["prompt_tokens"] == len(kept)
        expected = engine.embed([kept]).embeddings[0].tolist()
        assert answer["data"][0]["embedding"] == pytest.approx(expected, abs=1e-5)


# Messages and templates.


def test_names_of_speakers(ask: Asker) -> None:
    """The template of this model has no place for them."""
    named = [{**message, "name": "Ann"} for message in HELLO]
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    assert ask("chat", messages=named, **fields).texts == ask("chat", messages=HELLO, **fields).texts


def test_an_answer_that_goes_on(web: httpx2.Client, ask: Asker) -> None:
    """What the assistant has begun is the end of the prompt."""
    begun = [*HELLO, {"role": "assistant", "content": "Hello! I am"}]
    answer = web.post("/tokenize", json={"messages": begun, "continue_final_message": True}).json()
    prompt = web.post("/detokenize", json={"tokens": answer["tokens"]}).json()["prompt"]
    assert prompt.endswith("<|assistant|>Hello! I am")
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    went_on = ask("chat", messages=begun, extra_body={"continue_final_message": True}, **fields)
    assert went_on.texts == ask("completions", prompt=answer["tokens"], **fields).texts


def test_special_tokens_in_the_answer(ask: Asker, engine: ChatClient) -> None:
    (end,) = engine.tokenize(text="<|end|>").token_ids
    fields: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 3, "logit_bias": {str(end): 100}}
    body = {"ignore_eos": True, "skip_special_tokens": False}
    assert ask("chat", **fields, extra_body=body).texts == ["<|end|>" * 3]
    assert ask("chat", **fields, extra_body=body | {"skip_special_tokens": True}).texts == [""]


# Triton's own endpoint.


@pytest.mark.parametrize(
    ("model", "body"), [("tokenizer", {"text_input": "hi"}), ("embeddings", {"text": "hi"})], ids=["tokenizer", "embed"]
)
def test_the_field_id_of_generate(triton: LocalTriton, model: str, body: dict[str, str]) -> None:
    url = f"{triton.http_url}/v2/models/{model}/generate"
    status, text = post(url, {"id": "mine", **body})
    assert (status, json.loads(text).pop("id")) == (200, "mine")


def test_truncation_over_generate(triton: LocalTriton) -> None:
    body = {"text": "word " * 100, "parameters": {"truncate_prompt_tokens": 5}}
    status, text = post(f"{triton.http_url}/v2/models/embeddings/generate", body)
    assert (status, json.loads(text)["num_tokens"]) == (200, 5)
