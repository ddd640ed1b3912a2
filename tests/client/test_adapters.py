"""Adapters at the SDK and the command line: which there are, and requests that name one."""

from __future__ import annotations

import json

import pytest

from tests.client.commands import run
from tests.client.fake_server import FakeTriton
from triton_chat import wire
from triton_chat.client import AsyncChatClient, ChatClient
from triton_chat.errors import InvalidRequestError
from triton_chat.types import AdapterInfo, ChatRequest

ADAPTERS = {"chat": {"sql": "org/sql-lora", "poet": "poet-8"}, "gone": {"x": "y"}}
TOLD = (AdapterInfo("poet", "poet-8"), AdapterInfo("sql", "org/sql-lora"))


@pytest.fixture
def adapted(fake: FakeTriton) -> FakeTriton:
    fake.states = {"chat": "READY", "tokenizer": "READY"}
    fake.adapters = ADAPTERS
    return fake


def told(client: ChatClient) -> tuple[AdapterInfo, ...]:
    models = {model.name: model for model in client.models()}
    assert models["tokenizer"].adapters == ()
    return models["chat"].adapters


class TestWhichThereAre:
    def test_the_tokenizer_is_asked_once_while_a_model_is_loaded(self, adapted: FakeTriton, client: ChatClient) -> None:
        assert [told(client) for _ in range(3)] == [TOLD] * 3
        assert adapted.times_asked_for_adapters == 1
        adapted.states["chat"] = "UNAVAILABLE"
        assert told(client) == TOLD  # as when it was last loaded
        adapted.states["chat"] = "READY"
        adapted.adapters = {"chat": {}}
        assert told(client) == ()
        assert adapted.times_asked_for_adapters == 2

    async def test_the_same_with_asyncio(self, adapted: FakeTriton) -> None:
        async with AsyncChatClient(adapted.url) as client:
            models = {model.name: model for model in await client.models()}
        assert models["chat"].adapters == TOLD

    def test_an_older_tokenizer_refuses_the_question_and_is_not_asked_again(
        self, adapted: FakeTriton, client: ChatClient
    ) -> None:
        adapted.adapters = "return_adapters: unknown parameter (value true) [code=invalid_value field=return_adapters]"
        assert [told(client), told(client)] == [(), ()]
        assert adapted.times_asked_for_adapters == 1

    def test_one_that_fails_is_asked_again_and_the_list_is_there_meanwhile(
        self, adapted: FakeTriton, client: ChatClient
    ) -> None:
        adapted.adapters = "the tokenizer failed: internal error [code=internal_error]"
        assert told(client) == ()
        adapted.adapters = ADAPTERS
        assert told(client) == TOLD

    @pytest.mark.parametrize("state", [None, "LOADING"])
    def test_without_a_tokenizer_nobody_is_asked(
        self, adapted: FakeTriton, client: ChatClient, state: str | None
    ) -> None:
        adapted.states = {"chat": "READY"} | ({"tokenizer": state} if state else {})
        assert {model.name: model.adapters for model in client.models()}["chat"] == ()
        assert adapted.times_asked_for_adapters == 0
        adapted.states["tokenizer"] = "READY"
        assert told(client) == TOLD


class TestRequests:
    def test_a_call_names_it(self, fake: FakeTriton, client: ChatClient) -> None:
        client.generate("hi", adapter="org/poet")
        client.generate(prompt="hi", adapter=None)
        first, second = fake.requests
        assert first.tensor("adapter") == ["org/poet"]
        assert not second.tensor("adapter")

    def test_tools_run_with_it(self, fake: FakeTriton, client: ChatClient) -> None:
        client.run_tools("hi", [], adapter="sql")
        assert fake.requests[0].tensor("adapter") == ["sql"]

    def test_rows_may_have_one_each(self, fake: FakeTriton, client: ChatClient) -> None:
        own = [ChatRequest(messages="b", adapter="poet"), ChatRequest(messages="c")]
        client.generate_batch(["a", *own], adapter="sql")
        assert fake.requests[0].tensor("adapter") == ["sql", "poet", ""]
        client.generate_batch(prompts=["a", "b"], adapter="sql")
        assert fake.requests[1].tensor("adapter") == ["sql", "sql"]
        client.generate_batch(["a", "b"])
        assert not fake.requests[2].tensor("adapter")

    def test_a_name_that_cannot_be_sent(self) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            wire.encode(ChatRequest(messages="a", adapter="\ud800"))
        assert caught.value.field == "adapter"


class TestCommandLine:
    @pytest.mark.parametrize("command", ["ask", "complete"])
    def test_a_flag(self, fake: FakeTriton, command: str) -> None:
        assert run(fake.url, command, "hi", "--adapter", "sql").returncode == 0
        assert fake.requests[0].tensor("adapter") == ["sql"]

    def test_models_lists_them(self, adapted: FakeTriton) -> None:
        assert "poet, sql" in run(adapted.url, "models", COLUMNS="100").stdout.decode()
        chat = next(m for m in json.loads(run(adapted.url, "models", "--json").stdout) if m["name"] == "chat")
        assert chat["adapters"][1] == {"name": "sql", "root": "org/sql-lora"}
