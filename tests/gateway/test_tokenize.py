from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient
from typing_extensions import Unpack

from tests.gateway.fakes import FakeClient, model
from triton_chat import errors
from triton_chat.tokenizer import TokenizeOptions
from triton_chat.types import Messages, TokenizerInfo, Tokens

MESSAGES = [{"role": "developer", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]}]

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


class Tokenizer(FakeClient):
    """A token is a character's code point."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        self.failures: list[errors.TritonChatError] = []
        """Of the next calls."""

    async def tokenize(
        self,
        messages: Messages | None = None,
        *,
        text: str | None = None,
        model: str = "chat",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> Tokens:
        given = {name: value for name, value in options.items() if value is not None}
        self.asked.append({"messages": messages, "text": text, "model": model, **given})
        self._fail()
        names = tuple(text or "") if options.get("return_token_strs") else ()
        return Tokens(tuple(map(ord, text or "")), text or "", 2048, names)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str = "chat",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Tokens:
        self._fail()
        return Tokens(tuple(token_ids), "".join(map(chr, token_ids)), 2048)

    async def tokenizer_info(
        self, model: str = "chat", *, timeout: float | None = None, headers: Mapping[str, str] | None = None
    ) -> TokenizerInfo:
        self._fail()
        return await super().tokenizer_info(model)

    def _fail(self) -> None:
        self._raise()
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def fake() -> Tokenizer:
    return Tokenizer()


def test_there_and_back(gateway: TestClient) -> None:
    answer = gateway.post("/tokenize", json={"model": "chat", "prompt": "你好!"})
    ids = [ord(char) for char in "你好!"]
    assert answer.json() == {"count": 3, "max_model_len": 2048, "tokens": ids, "token_strs": None}
    back = gateway.post("/detokenize", json={"model": "chat", "tokens": answer.json()["tokens"]})
    assert back.json() == {"prompt": "你好!"}


def test_messages(gateway: TestClient, fake: Tokenizer) -> None:
    body = {"model": "chat", "messages": MESSAGES, "add_generation_prompt": False, "add_special_tokens": True}
    assert gateway.post("/tokenize", json=body).status_code == 200
    assert fake.asked == [
        {
            "messages": [{"role": "system", "content": "你\n好"}],
            "text": None,
            "add_generation_prompt": False,
            "add_special_tokens": True,
            "model": "chat",
        }
    ]


def test_tools_and_what_else_the_template_reads(gateway: TestClient, fake: Tokenizer) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}
    assert gateway.post("/tokenize", json=body).status_code == 200
    (asked,) = fake.asked
    assert (asked["tools"], asked["chat_template_kwargs"]) == (TOOLS, {"enable_thinking": False})
    empty: dict[str, Any] = {"prompt": "a", "tools": [], "chat_template_kwargs": {}}
    assert gateway.post("/tokenize", json=empty).status_code == 200
    assert fake.asked[1] == {"messages": None, "text": "a", "model": "chat"}


def test_a_mistake_in_an_old_call_is_named_as_the_caller_wrote_it(gateway: TestClient, fake: Tokenizer) -> None:
    field = "messages[1].tool_calls[0].function.arguments"
    fake.failures = [errors.InvalidRequestError("is not JSON", field=field)]
    call = {"role": "assistant", "function_call": {"name": "f", "arguments": "{"}}
    error = gateway.post("/tokenize", json={"messages": [*MESSAGES, call]}).json()["error"]
    assert error["param"] == "messages[1].function_call.arguments"


def test_the_names_of_the_tokens(gateway: TestClient, fake: Tokenizer) -> None:
    answer = gateway.post("/tokenize", json={"prompt": "你好!", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["你", "好", "!"]
    assert fake.asked == [{"messages": None, "text": "你好!", "model": "chat", "return_token_strs": True}]
    assert gateway.post("/tokenize", json={"prompt": "a", "return_token_strs": False}).json()["token_strs"] is None


def test_the_last_message_may_go_on(gateway: TestClient, fake: Tokenizer) -> None:
    for generation_prompt in (None, False):
        body = {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": generation_prompt}
        assert gateway.post("/tokenize", json=body).status_code == 200
    assert [asked["continue_final_message"] for asked in fake.asked] == [True, True]


class TestTokenizerInfo:
    def test_as_in_tokenizer_config(self, gateway: TestClient, fake: Tokenizer) -> None:
        for query in ("", "?model=chat"):
            answer = gateway.get(f"/tokenizer_info{query}")
            assert answer.json() == {"tokenizer_class": "Fake", "eos_token": "</s>"}
        assert [name for name, _ in fake.others] == ["tokenizer_info"] * 2
        assert gateway.head("/tokenizer_info").status_code == 200

    def test_one_of_several_must_be_named(self, gateway: TestClient, fake: Tokenizer) -> None:
        fake.catalogue = [model("chat"), model("other")]
        error = gateway.get("/tokenizer_info").json()["error"]
        assert (error["param"], error["code"]) == ("model", "missing_required_parameter")
        assert gateway.get("/tokenizer_info?model=other").status_code == 200

    def test_which_there_is_not(self, gateway: TestClient) -> None:
        assert gateway.get("/tokenizer_info?model=nope").status_code == 404
        error = gateway.get("/tokenizer_info", params={"model": "x" * 300}).json()["error"]
        assert (error["param"], error["code"]) == ("model", "invalid_value")

    def test_a_server_that_goes_is_followed_by_another(self, gateway: TestClient, fake: Tokenizer) -> None:
        gateway.get("/v1/models")
        fake.failures = [errors.ServerUnavailableError("gone")]
        assert gateway.get("/tokenizer_info").status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        (
            "/tokenize",
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ("/tokenize", {"prompt": "a", "tools": TOOLS}, "tools"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs"),
        ("/tokenize", {"messages": MESSAGES, "tools": [{}]}, "tools[0].type"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": []}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
    ],
)
def test_refused_by_name(gateway: TestClient, fake: Tokenizer, path: str, fields: dict[str, Any], param: str) -> None:
    response = gateway.post(path, json={"model": "chat", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert fake.asked == []


def test_fields_have_their_names_here(gateway: TestClient, fake: Tokenizer) -> None:
    gateway.get("/v1/models")  # so that the failure is the tokenizer's
    for path, fields, field, param in (
        ("/tokenize", {"prompt": "a"}, "text_input", "prompt"),
        ("/detokenize", {"tokens": [1]}, "token_ids", "tokens"),
    ):
        fake.failure = errors.InvalidRequestError("too long", field=field)
        error = gateway.post(path, json={"model": "chat", **fields}).json()["error"]
        assert (error["param"], error["message"]) == (param, f"{param}: too long")


def test_the_only_model_need_not_be_named(gateway: TestClient, fake: Tokenizer) -> None:
    assert gateway.post("/tokenize", json={"prompt": "a"}).json()["tokens"] == [97]
    assert fake.asked[0]["model"] == "chat"
    assert gateway.post("/detokenize", json={"tokens": [97]}).json() == {"prompt": "a"}


def test_one_of_several_must_be_named(gateway: TestClient, fake: Tokenizer) -> None:
    fake.catalogue = [model("chat"), model("other")]
    for path, fields in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        response = gateway.post(path, json=fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert fake.asked == []


@pytest.mark.parametrize(("path", "fields"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})])
def test_a_server_that_goes_is_followed_by_another(
    gateway: TestClient, fake: Tokenizer, path: str, fields: dict[str, Any]
) -> None:
    gateway.get("/v1/models")
    fake.failures = [errors.ServerUnavailableError("gone")]
    assert gateway.post(path, json={"model": "chat", **fields}).status_code == 200
    fake.failures = [errors.ServerUnavailableError("gone")] * 2
    assert gateway.post(path, json={"model": "chat", **fields}).status_code == 503


def test_unknown_model(gateway: TestClient) -> None:
    for path, fields in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert gateway.post(path, json={"model": "nope", **fields}).status_code == 404
