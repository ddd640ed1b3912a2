from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.gateway.fakes import FakeClient, model
from triton_chat import errors
from triton_chat.types import Messages, Tokens

MESSAGES = [{"role": "developer", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]}]


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
        add_generation_prompt: bool | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Tokens:
        asked = {"generation_prompt": add_generation_prompt, "special_tokens": add_special_tokens, "model": model}
        self.asked.append({"messages": messages, "text": text, **asked})
        self._fail()
        return Tokens(tuple(map(ord, text or "")), text or "", 2048)

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

    def _fail(self) -> None:
        self._raise()
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def fake() -> Tokenizer:
    return Tokenizer()


def test_there_and_back(gateway: TestClient) -> None:
    answer = gateway.post("/tokenize", json={"model": "chat", "prompt": "你好!"})
    assert answer.json() == {"count": 3, "max_model_len": 2048, "tokens": [ord(char) for char in "你好!"]}
    back = gateway.post("/detokenize", json={"model": "chat", "tokens": answer.json()["tokens"]})
    assert back.json() == {"prompt": "你好!"}


def test_messages(gateway: TestClient, fake: Tokenizer) -> None:
    body = {"model": "chat", "messages": MESSAGES, "add_generation_prompt": False, "add_special_tokens": True}
    assert gateway.post("/tokenize", json=body).status_code == 200
    assert fake.asked == [
        {
            "messages": [{"role": "system", "content": "你\n好"}],
            "text": None,
            "generation_prompt": False,
            "special_tokens": True,
            "model": "chat",
        }
    ]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
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
    for path, fields, told, param in (
        ("/tokenize", {"prompt": "a"}, "text_input: too long", "prompt"),
        ("/detokenize", {"tokens": [1]}, "token_ids: not in the vocabulary", "tokens"),
    ):
        fake.failure = errors.InvalidRequestError(told)
        error = gateway.post(path, json={"model": "chat", **fields}).json()["error"]
        assert (error["param"], error["message"]) == (param, f"{param}:{told.partition(':')[2]}")


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
