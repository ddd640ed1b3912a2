"""Adapters at every door of real servers. With the native engine, which has none: that each door says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from openai import OpenAI
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.gateway import LocalGateway
from local.triton import LocalTriton
from tests.chat_engine.lora import make_adapter
from tests.client.commands import run
from tests.integration.calls import ask, chat, connect, infer, request, request_rows
from tests.integration.engines import NATIVE
from tests.integration.servers import GatewayFactory, ServerFactory
from triton_chat import ChatClient, ModelNotFoundError

MESSAGES = chat("Hello!")
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
NAMES = ("org/poet", "sql")


@pytest.fixture(scope="module")
def has_adapters(engine_name: str) -> None:
    if engine_name == NATIVE:
        pytest.skip("the engine native has no adapters")


@pytest.fixture(scope="module")
def adapted(able_to_serve: None, engine_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """With two adapters where the engine has them."""
    folder: Path = tmp_path_factory.mktemp("adapted")
    adapters = {name: str(make_adapter(folder / str(seed), seed)) for seed, name in enumerate(NAMES)}
    block = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28, "enable_lora": True}
    servers = ServerFactory(folder, engine_name)
    try:
        yield servers({"threads": 1} if engine_name == NATIVE else {"vllm": block, "adapters": adapters})
    finally:
        servers.stop_all()


@pytest.fixture(scope="module")
def stub(adapted: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with connect(adapted) as opened:
        yield opened


@pytest.fixture(scope="module")
def door(adapted: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    gateways = GatewayFactory(tmp_path_factory.mktemp("gateway"))
    try:
        yield gateways(adapted, ALIASES=json.dumps({"gpt-sql": "sql"}))
    finally:
        gateways.stop_all()


@pytest.fixture(scope="module")
def texts(has_adapters: None, adapted: LocalTriton) -> dict[str | None, str]:
    """What each answers, by the SDK."""
    with ChatClient(adapted.grpc_address) as client:
        found = {name: client.generate(MESSAGES, adapter=name, **GREEDY).text for name in (None, *NAMES)}
    assert len(set(found.values())) == 3
    return found


def test_the_wire(stub: GRPCInferenceServiceStub, texts: dict[str | None, str]) -> None:
    for name in NAMES:
        as_input = ask(stub, request(messages=MESSAGES, sampling_parameters=GREEDY, adapter=name))
        as_parameter = ask(stub, request(messages=MESSAGES, sampling_parameters=GREEDY, parameters={"adapter": name}))
        assert as_input.text == as_parameter.text == texts[name]


def test_rows_with_one_each(stub: GRPCInferenceServiceStub, texts: dict[str | None, str]) -> None:
    rows = infer(
        stub,
        request_rows(
            "chat_unary", messages=[MESSAGES] * 3, sampling_parameters=[GREEDY] * 3, adapter=["sql", "", "org/poet"]
        ),
    )
    assert [answer.text for answer in rows.answers] == [texts["sql"], texts[None], texts["org/poet"]]


def test_the_gateway(door: LocalGateway, texts: dict[str | None, str]) -> None:
    with OpenAI(base_url=door.openai_url, api_key="none", max_retries=0) as client:
        models = {model.id: model for model in client.models.list()}
        assert list(models) == ["chat", "embeddings", "gpt-sql", "org/poet", "sql"]
        assert {models[name].parent for name in ("gpt-sql", *NAMES)} == {"chat"}  # type: ignore[attr-defined]
        for name, adapter in (("chat", None), ("sql", "sql"), ("gpt-sql", "sql"), ("org/poet", "org/poet")):
            answer = client.chat.completions.create(
                model=name, messages=MESSAGES, temperature=0, max_tokens=12, extra_body={"ignore_eos": True}
            )
            assert (answer.model, answer.choices[0].message.content) == (name, texts[adapter])
    tokens = httpx2.post(f"{door.url}/tokenize", json={"model": "sql", "prompt": "a"}).json()
    assert tokens == httpx2.post(f"{door.url}/tokenize", json={"model": "chat", "prompt": "a"}).json()


def test_the_command_line(adapted: LocalTriton, texts: dict[str | None, str]) -> None:
    flags = ("--temperature", "0", "--max-tokens", "12", "--ignore-eos")
    done = run(adapted.grpc_address, "ask", "Hello!", "--adapter", "sql", *flags)
    assert done.stdout.decode().strip() == texts["sql"].strip()
    assert "org/poet, sql" in run(adapted.grpc_address, "models", COLUMNS="120").stdout.decode()


def test_clients_of_the_vllm_backend(adapted: LocalTriton, has_adapters: None) -> None:
    def answer(**parameters: object) -> str:
        body = {"text_input": "Once", "exclude_input_in_output": True, "parameters": {"temperature": 0, **parameters}}
        return str(httpx2.post(f"{adapted.http_url}/v2/models/vllm_model/generate", json=body).json()["text_output"])

    assert len({answer(), answer(lora_name="sql"), answer(lora_name="org/poet")}) == 3


def test_the_metrics_are_those_of_the_model(adapted: LocalTriton, texts: dict[str | None, str]) -> None:
    assert texts
    page = httpx2.get(adapted.metrics_url).text
    lines = [line for line in page.splitlines() if line.startswith(("triton_chat_requests_total", "gen_ai_"))]
    assert lines
    assert {line.partition('model="')[2].partition('"')[0] for line in lines} == {"chat"}


class TestUnknown:
    """The same with both engines, but for what there is instead."""

    @pytest.fixture
    def instead(self, engine_name: str) -> str:
        if engine_name == NATIVE:
            return "there is no adapter 'nope'; this model has none, so leave it out"
        return "there is no adapter 'nope'; there are org/poet, sql"

    def test_the_sdk(self, adapted: LocalTriton, instead: str) -> None:
        with ChatClient(adapted.grpc_address) as client:
            with pytest.raises(ModelNotFoundError) as caught:
                client.generate(MESSAGES, adapter="nope")
            assert (caught.value.sentence, caught.value.field) == (instead, "adapter")
            with pytest.raises(ModelNotFoundError, match=instead):
                client.generate_batch(["a", "b"], adapter="nope")
            assert client.generate(MESSAGES, **GREEDY).text

    def test_triton_over_http(self, adapted: LocalTriton, instead: str) -> None:
        body = {"text_input": "Once", "adapter": "nope"}
        refused = httpx2.post(f"{adapted.http_url}/v2/models/chat/generate", json=body)
        assert refused.status_code in (400, 404)
        assert f"adapter: {instead}" in refused.json()["error"]

    def test_the_gateway(self, door: LocalGateway) -> None:
        with (
            OpenAI(base_url=door.openai_url, api_key="none", max_retries=0) as client,
            pytest.raises(openai.NotFoundError) as caught,
        ):
            client.chat.completions.create(model="nope", messages=MESSAGES)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
