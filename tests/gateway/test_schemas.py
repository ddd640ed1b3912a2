from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionMessage,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from pydantic import BaseModel, ValidationError

from chat_gateway.schemas.chat import ChatRequest
from chat_gateway.schemas.completions import CompletionRequest
from chat_gateway.schemas.embeddings import EmbeddingRequest
from chat_gateway.schemas.inputs import each
from chat_gateway.schemas.tokenize import TokenizeRequest

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "chat", "messages": HELLO}
COMPLETION = {"model": "chat", "prompt": "hello"}
VLLM = {"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"}
VLLM |= {"prompt_logprobs", "return_token_ids"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/cat.png"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}

SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "presence_penalty": 1,
    "frequency_penalty": -1,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 2,
    "max_tokens": 9,
    "ignore_eos": True,
    "stop_token_ids": [1, 2],
    "prompt_logprobs": 2,
    "return_token_ids": True,
    "seed": 7,
    "stop": ["\n", "。"],
}

NO_OPS: list[tuple[str, list[Any], list[Any]]] = [
    ("audio", [None], [{"voice": "alloy", "format": "wav"}]),
    ("chat_template", [None], ["{{ messages }}", ""]),
    ("chat_template_kwargs", [None], [{}]),
    ("function_call", [None, "none"], ["auto", {"name": "f"}]),
    ("functions", [None, []], [[{"name": "f"}]]),
    ("metadata", [None, {}], [{"a": "b"}]),
    ("modalities", [None, ["text"]], [["text", "audio"], []]),
    ("moderation", [None], [{"model": "omni"}]),
    ("parallel_tool_calls", [None, True, False], ["yes"]),
    ("prediction", [None], [{"type": "content", "content": "x"}]),
    ("prompt_cache_key", [None, "k"], ["k" * 513, 1]),
    ("prompt_cache_options", [None, {}, {"mode": "implicit"}], [{"mode": "explicit"}, {"ttl": "30m"}]),
    ("prompt_cache_retention", [None, "in_memory"], ["24h"]),
    ("reasoning_effort", [None, "none"], ["low", "high"]),
    (
        "response_format",
        [None, {"type": "text"}],
        [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}],
    ),
    ("safety_identifier", [None, "someone"], ["s" * 513]),
    ("service_tier", [None, "auto", "default"], ["flex", "priority"]),
    ("store", [None, False], [True, 0]),
    ("tool_choice", [None, "none"], ["auto", "required", {"type": "function", "function": {"name": "f"}}]),
    ("tools", [None, []], [[{"type": "function", "function": {"name": "f"}}]]),
    ("user", [None, "someone", "某人"], ["s" * 513, 5]),
    ("verbosity", [None, "medium"], ["low", "high"]),
    ("web_search_options", [None], [{}]),
]
"""Fields of chat that choose nothing: what is taken, what is refused."""


def mistakes(model: type[BaseModel], body: dict[str, Any]) -> dict[tuple[str | int, ...], str]:
    """Place and sentence of everything that is wrong."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return {error["loc"]: error["msg"] for error in caught.value.errors()}


class TestFieldsOfOpenAI:
    @pytest.mark.parametrize(
        ("ours", "params", "extras"),
        [
            (
                ChatRequest,
                chat_create_params.CompletionCreateParamsStreaming,
                VLLM | {"add_generation_prompt", "chat_template", "chat_template_kwargs"},
            ),
            (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming, VLLM),
            (EmbeddingRequest, embedding_create_params.EmbeddingCreateParams, set()),
        ],
    )
    def test_every_field_is_known(self, ours: type[BaseModel], params: Any, extras: set[str]) -> None:
        assert set(ours.model_fields) == set(params.__annotations__) | extras

    def test_every_field_of_a_message_and_of_an_answer_is_known(self) -> None:
        message = ChatRequest.model_fields["messages"].annotation.__args__[0]
        sent = (
            ChatCompletionSystemMessageParam,
            ChatCompletionDeveloperMessageParam,
            ChatCompletionUserMessageParam,
            ChatCompletionAssistantMessageParam,
        )
        known = {name for params in sent for name in params.__annotations__}
        assert set(message.model_fields) == known | set(ChatCompletionMessage.model_fields)

    def test_every_stream_option_is_known(self) -> None:
        options = ChatRequest.model_fields["stream_options"].annotation.__args__[0]
        assert set(options.model_fields) == set(ChatCompletionStreamOptionsParam.__annotations__)

    def test_every_field_that_chooses_nothing_is_tested_here(self) -> None:
        honoured = {*SAMPLING, "n", "logit_bias", "stream", "stream_options", "model", "messages"}
        honoured |= {"logprobs", "top_logprobs", "max_completion_tokens", "add_generation_prompt"}
        assert {name for name, _, _ in NO_OPS} == set(ChatRequest.model_fields) - honoured


class TestNothingToChoose:
    @pytest.mark.parametrize(("name", "value"), [(name, value) for name, taken, _ in NO_OPS for value in taken])
    def test_taken(self, name: str, value: object) -> None:
        ChatRequest.model_validate({**CHAT, name: value})

    @pytest.mark.parametrize(("name", "value"), [(name, value) for name, _, refused in NO_OPS for value in refused])
    def test_refused_by_name(self, name: str, value: object) -> None:
        assert list(mistakes(ChatRequest, {**CHAT, name: value})) == [(name,)]

    def test_a_sentence_says_what_to_do(self) -> None:
        assert mistakes(ChatRequest, {**CHAT, "tools": [{}]}) == {("tools",): "no tools are called here; leave it out"}

    def test_suffix(self) -> None:
        CompletionRequest.model_validate({**COMPLETION, "suffix": None})
        assert "leave it out" in mistakes(CompletionRequest, {**COMPLETION, "suffix": "x"})[("suffix",)]

    @pytest.mark.parametrize(("n", "best_of", "fine"), [(None, 1, True), (3, 3, True), (1, 2, False), (3, 1, False)])
    def test_best_of_is_n(self, n: int | None, best_of: int, fine: bool) -> None:
        body = {**COMPLETION, "n": n, "best_of": best_of}
        if fine:
            CompletionRequest.model_validate(body)
        else:
            assert list(mistakes(CompletionRequest, body)) == [("best_of",)]


class TestSampling:
    @pytest.mark.parametrize(("request_type", "body"), [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)])
    def test_all_of_it_reaches_the_engine(self, request_type: Any, body: dict[str, Any]) -> None:
        request = request_type.model_validate({**body, **SAMPLING, "logit_bias": {"3": -100, "15": 2.5}})
        assert request.sampling().to_dict() == SAMPLING | {"logit_bias": {"3": -100, "15": 2.5}}

    def test_nothing_given_leaves_all_to_the_engine_but_openais_16_tokens(self) -> None:
        assert ChatRequest.model_validate(CHAT).sampling().to_dict() == {}
        assert CompletionRequest.model_validate(COMPLETION).sampling().to_dict() == {"max_tokens": 16}

    @pytest.mark.parametrize(
        ("fields", "sent"),
        [
            ({"logprobs": False}, None),
            ({"logprobs": False, "top_logprobs": 0}, None),
            ({"logprobs": True}, 0),
            ({"logprobs": True, "top_logprobs": 20}, 20),
        ],
    )
    def test_logprobs_of_chat(self, fields: dict[str, Any], sent: int | None) -> None:
        assert ChatRequest.model_validate({**CHAT, **fields}).sampling().logprobs == sent

    def test_both_names_of_the_limit_may_agree(self) -> None:
        for fields in ({"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 5}):
            assert ChatRequest.model_validate({**CHAT, **fields}).sampling().max_tokens == 5
        differing = {**CHAT, "max_tokens": 5, "max_completion_tokens": 6}
        assert list(mistakes(ChatRequest, differing)) == [("max_completion_tokens",)]

    @pytest.mark.parametrize(
        ("name", "value", "place"),
        [
            ("temperature", 2.1, ()),
            ("temperature", True, ()),
            ("temperature", "1", ()),
            ("temperature", float("inf"), ()),
            ("top_p", 0, ()),
            ("top_k", -2, ()),
            ("n", 0, ()),
            ("n", 10**30, ()),
            ("n", 1.5, ()),
            ("n", True, ()),
            ("max_tokens", -1, ()),
            ("prompt_logprobs", -1, ()),
            ("return_token_ids", 1, ()),
            ("seed", 1.5, ()),
            ("min_p", 1.1, ()),
            ("repetition_penalty", 0, ()),
            ("presence_penalty", -2.1, ()),
            ("stop", 5, ()),
            ("stop", "", ()),
            ("stop", ["a", ""], (1,)),
            ("stop", ["a"] * 17, ()),
            ("stop", "x" * 257, ()),
            ("stop_token_ids", [-1], (0,)),
            ("stop_token_ids", [2**31], (0,)),
            ("logit_bias", {"3": 101}, ("3",)),
            ("logit_bias", {"x": 1}, ("x", "[key]")),
            ("logit_bias", {str(i): 0 for i in range(1025)}, ()),
            ("stream", "true", ()),
            ("stream_options", {"include_usage": True}, ()),
            ("user", 1, ()),
            ("nonsense", 1, ()),
        ],
    )
    @pytest.mark.parametrize(("request_type", "body"), [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)])
    def test_refused_by_name(
        self, request_type: Any, body: dict[str, Any], name: str, value: object, place: tuple[object, ...]
    ) -> None:
        assert list(mistakes(request_type, {**body, name: value})) == [(name, *place)]

    @pytest.mark.parametrize("fields", [{"logprobs": 1}, {"logprobs": True, "top_logprobs": 21}, {"top_logprobs": 1}])
    def test_bad_logprobs_of_chat(self, fields: dict[str, Any]) -> None:
        assert list(mistakes(ChatRequest, {**CHAT, **fields})) == [(list(fields)[-1],)]

    def test_bad_logprobs_of_completions(self) -> None:
        assert list(mistakes(CompletionRequest, {**COMPLETION, "logprobs": 21})) == [("logprobs",)]

    @pytest.mark.parametrize(
        ("fields", "sent"),
        [
            ({"logprobs": 2}, None),
            ({"echo": True}, None),
            ({"echo": True, "logprobs": 0}, 0),
            ({"echo": True, "logprobs": 2, "prompt_logprobs": 1}, 2),
            ({"echo": True, "logprobs": 2, "prompt_logprobs": 3}, 3),
            ({"echo": True, "prompt_logprobs": 0}, 0),
        ],
    )
    def test_logprobs_of_an_echo_are_asked_for_with_those_of_the_prompt(
        self, fields: dict[str, Any], sent: int | None
    ) -> None:
        assert CompletionRequest.model_validate({**COMPLETION, **fields}).sampling().prompt_logprobs == sent

    @pytest.mark.parametrize(("request_type", "body"), [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)])
    def test_prompt_logprobs_are_not_for_streams(self, request_type: Any, body: dict[str, Any]) -> None:
        place = ("prompt_logprobs",)
        assert list(mistakes(request_type, {**body, "stream": True, "prompt_logprobs": 0})) == [place]

    def test_only_a_completion_may_be_a_prompt_alone(self) -> None:
        assert list(mistakes(ChatRequest, {**CHAT, "max_tokens": 0})) == [("max_tokens",)]
        assert (
            CompletionRequest.model_validate({**COMPLETION, "max_tokens": 0, "echo": True}).sampling().max_tokens == 0
        )

    @pytest.mark.parametrize(
        ("request_type", "body", "names"),
        [
            (ChatRequest, CHAT, ["n", "max_tokens", "max_completion_tokens", "seed", "top_k", "min_tokens"]),
            (ChatRequest, {**CHAT, "logprobs": True}, ["top_logprobs"]),
            (CompletionRequest, COMPLETION, ["n", "max_tokens", "seed", "top_k", "min_tokens", "logprobs"]),
            (CompletionRequest, COMPLETION, ["prompt_logprobs"]),
            (CompletionRequest, {**COMPLETION, "n": 3}, ["best_of"]),
            (EmbeddingRequest, {"model": "e", "input": "a"}, ["dimensions"]),
        ],
    )
    def test_a_whole_number_may_be_written_as_a_fraction(
        self, request_type: Any, body: dict[str, Any], names: list[str]
    ) -> None:
        for name in names:
            value = getattr(request_type.model_validate({**body, name: 3.0}), name)
            assert (value, type(value)) == (3, int)
            assert list(mistakes(request_type, {**body, name: 3.5})) == [(name,)]

    def test_padding_is_not_added(self) -> None:
        body = {**CHAT, "stream": True}
        ChatRequest.model_validate({**body, "stream_options": {"include_obfuscation": False}})
        place = ("stream_options", "include_obfuscation")
        assert list(mistakes(ChatRequest, {**body, "stream_options": {"include_obfuscation": True}})) == [place]


class TestMessages:
    def test_as_the_model_takes_them(self) -> None:
        parts = [{"type": "text", "text": "Was ist das?"}, {"type": "text", "text": "这是什么？"}]
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": ""},
        ]
        assert ChatRequest.model_validate({**CHAT, "messages": messages}).to_model() == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Was ist das?\n这是什么？"},
            {"role": "assistant", "content": ""},
        ]

    def test_an_answer_can_be_sent_back(self) -> None:
        answer = ChatCompletionMessage(role="assistant", content="hi")
        for turn in (
            answer.model_dump(),
            answer.model_dump(exclude_unset=True),
            answer.model_dump() | {"tool_calls": []},
        ):
            ChatRequest.model_validate({**CHAT, "messages": [*HELLO, turn]})

    @pytest.mark.parametrize(
        ("message", "place"),
        [
            ({"role": "tool", "content": "x"}, ("role",)),
            ({"role": "function", "content": "x"}, ("role",)),
            ({"role": "user", "content": None}, ("content",)),
            ({"role": "user", "content": 5}, ("content",)),
            ({"role": "user", "content": []}, ("content",)),
            ({"role": "user", "content": "x", "name": "bob"}, ("name",)),
            ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, ("tool_calls",)),
            ({"role": "assistant", "content": "x", "refusal": "no"}, ("refusal",)),
            ({"role": "user", "content": [{"type": "text"}]}, ("content", 0, "text")),
            ({"role": "user", "content": [{"type": "text", "text": 1}]}, ("content", 0, "text")),
            ({"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}, ("content", 1, "type")),
            ({"role": "user", "content": [AUDIO]}, ("content", 0, "type")),
            ({"role": "user", "content": [{"type": "file", "file": {}}]}, ("content", 0, "type")),
            ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, ("content", 0, "type")),
        ],
    )
    def test_refused_by_place(self, message: dict[str, Any], place: tuple[object, ...]) -> None:
        assert next(iter(mistakes(ChatRequest, {**CHAT, "messages": [*HELLO, message]}))) == ("messages", 1, *place)

    @pytest.mark.parametrize("messages", [[], None, "hello", {}])
    def test_there_must_be_some(self, messages: object) -> None:
        assert list(mistakes(ChatRequest, {**CHAT, "messages": messages})) == [("messages",)]


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "expected"),
        [
            ("a", ["a"]),
            ("", [""]),
            (["a", "b"], ["a", "b"]),
            ([1, 2], [[1, 2]]),
            ([[1], [2, 3]], [[1], [2, 3]]),
        ],
    )
    def test_each(self, inputs: Any, expected: list[object]) -> None:
        assert each(CompletionRequest.model_validate({**COMPLETION, "prompt": inputs}).prompt) == expected
        assert each(EmbeddingRequest.model_validate({"model": "e", "input": inputs}).input) == expected

    @pytest.mark.parametrize(
        ("inputs", "place"),
        [
            (None, ()),
            ([], ()),
            ([[]], (0,)),
            ([True], ()),
            ([1.5], ()),
            ({"text": "a"}, ()),
            (["a", 1], (1,)),
            ([1, "a"], (1,)),
            ([1, -1], (1,)),
            ([[1], ["a"]], (1, 0)),
            ([[1], []], (1,)),
            ([[["a"]]], (0, 0)),
        ],
    )
    def test_refused_by_place(self, inputs: object, place: tuple[int, ...]) -> None:
        assert list(mistakes(CompletionRequest, {**COMPLETION, "prompt": inputs})) == [("prompt", *place)]

    @given(
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda s: st.lists(s, max_size=3))
    )
    def test_whatever_is_taken_is_one_of_the_four(self, inputs: Any) -> None:
        try:
            request = CompletionRequest.model_validate({**COMPLETION, "prompt": inputs})
        except ValidationError:
            return
        assert request.prompt == inputs
        assert {type(item) for item in each(request.prompt)} in ({str}, {list})


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": HELLO}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
    ],
)
def test_tokenize_takes_one_of_two(fields: dict[str, Any], place: str) -> None:
    assert list(mistakes(TokenizeRequest, {"model": "chat", **fields})) == [(place,)]


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest])
def test_the_published_schema_allows_no_unknown_field(request_type: type[BaseModel]) -> None:
    schema = request_type.model_json_schema()
    assert all(part["additionalProperties"] is False for part in (schema, *schema.get("$defs", {}).values()))
