from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields as fields_of
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat_create_params
from pydantic import BaseModel, ValidationError

from chat_gateway.schemas.chat import ChatCompletionRequest
from chat_gateway.schemas.completions import CompletionRequest
from chat_gateway.schemas.embeddings import EmbeddingRequest
from chat_gateway.schemas.inputs import each
from chat_gateway.schemas.tokenize import TokenizeRequest
from tests.gateway.bodies import (
    BODIES,
    CHAT,
    COMPLETION,
    HELLO,
    OF_CHAT,
    OF_COMPLETIONS,
    OF_EMBEDDINGS,
    mistakes,
)  # fmt: skip
from triton_chat.types import SamplingParams

VLLM = {"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "skip_special_tokens"}
VLLM |= {"prompt_logprobs", "return_token_ids"}
CONSTRAINTS = {"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}
VLLM_CHAT = {"add_generation_prompt", "continue_final_message", "chat_template_kwargs", "include_reasoning"}
TOOLS = {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"}

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
    "skip_special_tokens": False,
    "stop_token_ids": [1, 2],
    "prompt_logprobs": 2,
    "return_token_ids": True,
    "seed": 7,
    "stop": ["\n", "。"],
}

INERT = {ChatCompletionRequest: OF_CHAT, CompletionRequest: OF_COMPLETIONS, EmbeddingRequest: OF_EMBEDDINGS}
"""Fields that choose nothing: what is taken, what is refused."""


class TestFieldsOfOpenAI:
    @pytest.mark.parametrize(
        ("ours", "params", "extras"),
        [
            (
                ChatCompletionRequest,
                chat_create_params.CompletionCreateParamsStreaming,
                VLLM | VLLM_CHAT | CONSTRAINTS,
            ),
            (
                CompletionRequest,
                completion_create_params.CompletionCreateParamsStreaming,
                VLLM | CONSTRAINTS | {"response_format"},
            ),
            (
                EmbeddingRequest,
                embedding_create_params.EmbeddingCreateParams,
                {"truncate_prompt_tokens", "truncation_side"},
            ),
        ],
    )
    def test_every_field_is_known(self, ours: type[BaseModel], params: Any, extras: set[str]) -> None:
        assert set(ours.model_fields) == set(params.__annotations__) | extras | set(INERT[ours])

    def test_every_stream_option_is_known(self) -> None:
        options = ChatCompletionRequest.model_fields["stream_options"].annotation.__args__[0]
        openais = set(ChatCompletionStreamOptionsParam.__annotations__)
        assert set(options.model_fields) == openais | {"continuous_usage_stats"}

    def test_every_field_that_chooses_nothing_is_tested_here(self) -> None:
        honoured = {*SAMPLING, "n", "logit_bias", "stream", "stream_options", "model", "messages"}
        honoured |= {"logprobs", "top_logprobs", "max_completion_tokens"}
        honoured |= VLLM_CHAT | CONSTRAINTS | TOOLS | {"reasoning_effort", "response_format"}
        assert set(OF_CHAT) == set(ChatCompletionRequest.model_fields) - honoured


class TestNothingToChoose:
    @pytest.mark.parametrize(
        ("ours", "name", "value"),
        [(ours, name, value) for ours, inert in INERT.items() for name, (taken, _) in inert.items() for value in taken],
    )
    def test_taken(self, ours: type[BaseModel], name: str, value: object) -> None:
        ours.model_validate({**BODIES[ours], name: value})

    @pytest.mark.parametrize(
        ("ours", "name", "value"),
        [(ours, name, value) for ours, inert in INERT.items() for name, (_, bad) in inert.items() for value in bad],
    )
    def test_refused_by_name(self, ours: type[BaseModel], name: str, value: object) -> None:
        assert list(mistakes(ours, {**BODIES[ours], name: value})) == [(name,)]

    @pytest.mark.parametrize("ours", INERT)
    def test_null_is_as_if_left_out(self, ours: type[BaseModel]) -> None:
        optional = [name for name, field in ours.model_fields.items() if not field.is_required()]
        nulls = dict.fromkeys(optional)
        assert ours.model_validate(BODIES[ours] | nulls) == ours.model_validate(BODIES[ours])

    def test_all_fields_together(self) -> None:
        for ours, inert in INERT.items():
            ours.model_validate(BODIES[ours] | {name: taken[-1] for name, (taken, _) in inert.items()})

    def test_hints_of_caching_in_a_message(self) -> None:
        hints = {"prompt_cache_breakpoint": {"mode": "explicit"}, "cache_control": {"type": "ephemeral"}}
        for hint in (hints, dict.fromkeys(hints)):
            part = {"type": "text", "text": "x", **hint}
            request = ChatCompletionRequest.model_validate({**CHAT, "messages": [{"role": "user", "content": [part]}]})
            assert request.to_model() == [{"role": "user", "content": "x"}]

    def test_a_sentence_says_what_to_do(self) -> None:
        assert mistakes(ChatCompletionRequest, {**CHAT, "web_search_options": {}}) == {
            ("web_search_options",): "web search is not supported; leave it out"
        }

    @pytest.mark.parametrize(("n", "best_of", "fine"), [(None, 1, True), (3, 3, True), (1, 2, False), (3, 1, False)])
    def test_best_of_is_n(self, n: int | None, best_of: int, fine: bool) -> None:
        body = {**COMPLETION, "n": n, "best_of": best_of}
        if fine:
            CompletionRequest.model_validate(body)
        else:
            assert list(mistakes(CompletionRequest, body)) == [("best_of",)]


class TestSampling:
    @pytest.mark.parametrize(("request_type", "body"), [(ChatCompletionRequest, CHAT), (CompletionRequest, COMPLETION)])
    def test_all_of_it_reaches_the_engine(self, request_type: Any, body: dict[str, Any]) -> None:
        request = request_type.model_validate({**body, **SAMPLING, "logit_bias": {"3": -100, "15": 2.5}})
        assert request.sampling().to_dict() == SAMPLING | {"logit_bias": {"3": -100, "15": 2.5}}

    def test_nothing_given_leaves_all_to_the_engine_but_openais_16_tokens(self) -> None:
        assert ChatCompletionRequest.model_validate(CHAT).sampling().to_dict() == {}
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
        assert ChatCompletionRequest.model_validate({**CHAT, **fields}).sampling().logprobs == sent

    def test_the_newer_name_of_the_limit_wins(self) -> None:
        for fields, limit, name in (
            ({"max_tokens": 5}, 5, "max_tokens"),
            ({"max_completion_tokens": 5}, 5, "max_completion_tokens"),
            ({"max_tokens": 5, "max_completion_tokens": 6}, 6, "max_completion_tokens"),
            ({"max_tokens": 5, "max_completion_tokens": None}, 5, "max_tokens"),
        ):
            request = ChatCompletionRequest.model_validate({**CHAT, **fields})
            assert (request.sampling().max_tokens, request.names["max_tokens"]) == (limit, name)

    def test_a_seed_of_minus_1_is_none(self) -> None:
        assert ChatCompletionRequest.model_validate({**CHAT, "seed": -1}).sampling().seed is None

    @pytest.mark.parametrize(("request_type", "body"), [(ChatCompletionRequest, CHAT), (CompletionRequest, COMPLETION)])
    @pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1, -2, -(2**63), 3.0])
    def test_seeds_of_64_bits(self, request_type: Any, body: dict[str, Any], seed: float) -> None:
        sent = request_type.model_validate({**body, "seed": seed}).sampling().seed
        assert (sent, type(sent)) == (seed % 2**64, int)

    @pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30, 1e30, -1e30])
    def test_a_seed_beyond_64_bits(self, seed: float) -> None:
        assert list(mistakes(ChatCompletionRequest, {**CHAT, "seed": seed})) == [("seed",)]

    def test_the_most_probable_token_alone(self) -> None:
        assert ChatCompletionRequest.model_validate({**CHAT, "top_p": 0}).sampling().to_dict() == {"top_p": 0}

    @pytest.mark.parametrize(
        ("name", "value", "place"),
        [
            ("temperature", True, ()),
            ("temperature", "1", ()),
            ("temperature", float("inf"), ()),
            ("n", 0, ()),
            ("n", 1.5, ()),
            ("n", True, ()),
            ("return_token_ids", 1, ()),
            ("seed", 1.5, ()),
            ("stop", 5, ()),
            ("stop", "", ()),
            ("stop", ["a", ""], (1,)),
            ("max_tokens", "9", ()),
            ("ignore_eos", 1, ()),
            ("stop_token_ids", [-1], (0,)),
            ("stop_token_ids", [True], (0,)),
            ("logit_bias", {"3": "1"}, ("3",)),
            ("logit_bias", [3], ()),
            ("logit_bias", {"x": 1}, ("x", "[key]")),
            ("stream", "true", ()),
            ("stream_options", {"include_usage": True}, ()),
            ("user", 1, ()),
            ("nonsense", 1, ()),
        ],
    )
    @pytest.mark.parametrize(("request_type", "body"), [(ChatCompletionRequest, CHAT), (CompletionRequest, COMPLETION)])
    def test_refused_by_name(
        self, request_type: Any, body: dict[str, Any], name: str, value: object, place: tuple[object, ...]
    ) -> None:
        assert list(mistakes(request_type, {**body, name: value})) == [(name, *place)]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("temperature", 2.1),
            ("temperature", -1),
            ("top_p", 1.1),
            ("top_k", -2),
            ("min_p", 1.1),
            ("max_tokens", 10**30),
            ("min_tokens", -1),
            ("prompt_logprobs", 10**30),
            ("prompt_logprobs", -1),
            ("repetition_penalty", 0),
            ("presence_penalty", -2.1),
            ("frequency_penalty", 2.1),
            ("stop", ["a"] * 1000),
            ("stop", "x" * 10_000),
            ("stop_token_ids", [2**40]),
            ("stop_token_ids", list(range(10_000))),
            ("logit_bias", {"3": 101}),
            ("logit_bias", {"9" * 5000: 1}),
            ("logit_bias", {str(i): 0 for i in range(10_000)}),
        ],
    )
    @pytest.mark.parametrize(("request_type", "body"), [(ChatCompletionRequest, CHAT), (CompletionRequest, COMPLETION)])
    def test_sizes_and_ranges_are_the_engines_to_judge(
        self, request_type: Any, body: dict[str, Any], name: str, value: object
    ) -> None:
        assert request_type.model_validate({**body, name: value}).sampling().to_dict()[name] == value

    @pytest.mark.parametrize("value", [21, 10**30, -1])
    def test_how_many_logprobs_is_the_engines_to_judge(self, value: int) -> None:
        chat = ChatCompletionRequest.model_validate({**CHAT, "logprobs": True, "top_logprobs": value})
        assert (chat.sampling().logprobs, chat.names["logprobs"]) == (value, "top_logprobs")
        assert CompletionRequest.model_validate({**COMPLETION, "logprobs": value}).sampling().logprobs == value

    @pytest.mark.parametrize("fields", [{"logprobs": 1}, {"top_logprobs": 1}, {"logprobs": False, "top_logprobs": -1}])
    def test_bad_logprobs_of_chat(self, fields: dict[str, Any]) -> None:
        assert list(mistakes(ChatCompletionRequest, {**CHAT, **fields})) == [(list(fields)[-1],)]

    @pytest.mark.parametrize(
        ("fields", "sent", "name"),
        [
            ({"logprobs": 2}, None, "prompt_logprobs"),
            ({"echo": True}, None, "prompt_logprobs"),
            ({"echo": True, "logprobs": 0}, 0, "logprobs"),
            ({"echo": True, "logprobs": 2, "prompt_logprobs": 1}, 2, "logprobs"),
            ({"echo": True, "logprobs": 2, "prompt_logprobs": 3}, 3, "prompt_logprobs"),
            ({"echo": True, "logprobs": 2, "prompt_logprobs": -1}, -1, "prompt_logprobs"),
            ({"echo": True, "prompt_logprobs": 0}, 0, "prompt_logprobs"),
        ],
    )
    def test_logprobs_of_an_echo_are_asked_for_with_those_of_the_prompt(
        self, fields: dict[str, Any], sent: int | None, name: str
    ) -> None:
        """And a refusal names the field that asked for so many."""
        request = CompletionRequest.model_validate({**COMPLETION, **fields})
        assert (request.sampling().prompt_logprobs, request.names["prompt_logprobs"]) == (sent, name)

    @pytest.mark.parametrize(("request_type", "body"), [(ChatCompletionRequest, CHAT), (CompletionRequest, COMPLETION)])
    def test_prompt_logprobs_are_not_for_streams(self, request_type: Any, body: dict[str, Any]) -> None:
        place = ("prompt_logprobs",)
        assert list(mistakes(request_type, {**body, "stream": True, "prompt_logprobs": 0})) == [place]

    def test_only_a_completion_may_be_a_prompt_alone(self) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            for value in (0, -1):
                assert list(mistakes(ChatCompletionRequest, {**CHAT, name: value})) == [(name,)]
        assert (
            CompletionRequest.model_validate({**COMPLETION, "max_tokens": 0, "echo": True}).sampling().max_tokens == 0
        )

    @pytest.mark.parametrize(
        ("request_type", "body", "names"),
        [
            (ChatCompletionRequest, CHAT, ["n", "max_tokens", "max_completion_tokens", "seed", "top_k", "min_tokens"]),
            (ChatCompletionRequest, {**CHAT, "logprobs": True}, ["top_logprobs"]),
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

    @pytest.mark.parametrize(
        ("options", "usage", "continuous"),
        [
            (None, False, False),
            ({}, False, False),
            ({"include_usage": None, "continuous_usage_stats": None, "include_obfuscation": None}, False, False),
            ({"include_obfuscation": True}, False, False),
            ({"include_usage": True, "include_obfuscation": False}, True, False),
            ({"include_usage": True, "continuous_usage_stats": True}, True, True),
            ({"continuous_usage_stats": True}, False, False),
            ({"include_usage": True, "continuous_usage_stats": False}, True, False),
        ],
    )
    def test_stream_options(self, options: dict[str, Any] | None, usage: bool, continuous: bool) -> None:
        for ours in (ChatCompletionRequest, CompletionRequest):
            request = ours.model_validate({**BODIES[ours], "stream": True, "stream_options": options})
            assert (request.include_usage, request.continuous_usage) == (usage, continuous)

    @pytest.mark.parametrize("stream", [False, None])
    def test_stream_options_without_a_stream(self, stream: bool | None) -> None:
        for ours in (ChatCompletionRequest, CompletionRequest):
            body = {**BODIES[ours], "stream": stream}
            ours.model_validate({**body, "stream_options": None})
            assert list(mistakes(ours, {**body, "stream_options": {}})) == [("stream_options",)]

    def test_the_last_message_goes_on_or_an_answer_begins(self) -> None:
        for begins in (None, False):
            fields = {"continue_final_message": True, "add_generation_prompt": begins}
            assert ChatCompletionRequest.model_validate({**CHAT, **fields}).continue_final_message is True
        both = {**CHAT, "continue_final_message": True, "add_generation_prompt": True}
        assert list(mistakes(ChatCompletionRequest, both)) == [("continue_final_message",)]
        ChatCompletionRequest.model_validate({**CHAT, "continue_final_message": False, "add_generation_prompt": True})


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


NO_SIZES = {
    "stop": {("minLength", 1)},
    "stop_token_ids": {("minimum", 0)},
    "seed": {("minimum", -(2**63)), ("maximum", 2**64 - 1)},
}
"""What the published schema says of a sampling parameter beside its type: nothing that is a setting of the engine."""


@pytest.mark.parametrize("request_type", [ChatCompletionRequest, CompletionRequest])
def test_the_published_schema_has_no_size_or_range_of_the_engines(request_type: type[BaseModel]) -> None:
    properties = request_type.model_json_schema()["properties"]
    assert ("minimum", 1) in set(limits_in(properties["n"]))
    for name in (*(field.name for field in fields_of(SamplingParams)), "top_logprobs", "max_completion_tokens"):
        assert set(limits_in(properties.get(name))) == NO_SIZES.get(name, set()), name


def limits_in(schema: object) -> Iterator[tuple[str, object]]:
    if isinstance(schema, dict):
        yield from ((key, value) for key, value in schema.items() if re.match("(exclusive)?[Mm](in|ax)", key))
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from limits_in(part)


ECHOED = {"AssistantMessage", "CalledFunction", "CalledTool", "EchoedPart"}
"""What a model has said comes back with whatever it came with."""


@pytest.mark.parametrize("request_type", [ChatCompletionRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest])
def test_the_published_schema_allows_no_unknown_field(request_type: type[BaseModel]) -> None:
    schema = request_type.model_json_schema()
    assert schema["additionalProperties"] is False
    for name, part in schema.get("$defs", {}).items():
        may_be_null = name == "TextPart" or "role" in part["properties"]
        allowed = name in ECHOED or ({"type": "null"} if may_be_null else False)
        assert part["additionalProperties"] == allowed, name
