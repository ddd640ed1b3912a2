from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from tests.client.fake_server import fail, infer_response, say
from triton_chat import wire
from triton_chat.errors import EngineError, InvalidRequestError, OverloadedError
from triton_chat.types import (
    Call,
    CallOptions,
    ChatRequest,
    PromptAlternative,
    PromptLogprob,
    SamplingOptions,
    SamplingParams,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
"""Everything but lone surrogates: emoji, Chinese and NUL too, which is the server's to judge."""
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXT}), min_size=1)


def inputs_of(message: service_pb2.ModelInferRequest) -> dict[str, list[bytes]]:
    return {
        tensor.name: list(deserialize_bytes_tensor(raw)) if tensor.datatype == "BYTES" else [raw]
        for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True)
    }


@given(MESSAGES)
def test_messages_arrive_as_they_were(messages: list[dict[str, str]]) -> None:
    message = wire.infer_request(Call(request=ChatRequest(messages=messages)))
    (raw,) = inputs_of(message)["messages"]
    assert json.loads(raw) == messages
    assert [list(tensor.shape) for tensor in message.inputs] == [[1, 1]]


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_prompts_arrive_as_they_were_in_rows(prompts: list[str]) -> None:
    rows = [ChatRequest(prompt=prompt) for prompt in prompts]
    message = wire.infer_request(Call(request=rows[0]), rows)
    assert [raw.decode() for raw in inputs_of(message)["text_input"]] == prompts
    assert list(message.inputs[0].shape) == [len(prompts), 1]


@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(0, 2**31 - 1))
def test_answers_arrive_as_they_were_in_rows(texts: list[str], tokens: int) -> None:
    response = infer_response(texts, "length", tokens)
    for result in (response, InferResult(response)):
        events = wire.decode_rows(result)
        assert [event.text for event in events] == texts
        assert {(event.finish_reason, event.num_output_tokens) for event in events} == {("length", tokens)}


@given(MESSAGES, st.booleans(), st.booleans())
def test_both_encoders_agree(messages: list[dict[str, str]], stream: bool, exclude: bool) -> None:
    request = ChatRequest(
        messages=messages,
        sampling=SamplingParams(seed=1),
        stream=stream,
        exclude_input_in_output=exclude,
    )
    message = wire.infer_request(Call(request=request))
    by_tritonclient = [(tensor._get_tensor(), tensor._get_content()) for tensor in wire.encode(request)]
    assert [tensor for tensor, _ in by_tritonclient] == list(message.inputs)
    assert [content for _, content in by_tritonclient] == list(message.raw_input_contents)


def test_only_what_is_set_is_sent() -> None:
    assert [tensor.name() for tensor in wire.encode(ChatRequest(messages="hi"))] == ["messages"]
    everything = ChatRequest(prompt="hi", sampling=SamplingParams(top_k=0), stream=False, exclude_input_in_output=False)
    assert [tensor.name() for tensor in wire.encode(everything)] == [
        "text_input",
        "sampling_parameters",
        "stream",
        "exclude_input_in_output",
    ]


def test_token_ids_and_the_template_option() -> None:
    by_ids = wire.infer_request(Call(request=ChatRequest(prompt_token_ids=(1, 22, 3))))
    assert inputs_of(by_ids) == {"prompt_token_ids": [b"[1,22,3]"]}
    for value in (True, False):
        request = ChatRequest(messages="hi", add_generation_prompt=value, sampling=SamplingParams(seed=1))
        inputs = inputs_of(wire.infer_request(Call(request=request)))
        assert [json.loads(text) for text in inputs["chat_parameters"]] == [{"add_generation_prompt": value}]
        assert [json.loads(text) for text in inputs["sampling_parameters"]] == [{"seed": 1}]


def test_any_sequence_of_token_ids_is_one() -> None:
    for ids in ([1, 2], (1, 2), range(1, 3), np.array([1, 2]).tolist()):
        assert inputs_of(wire.infer_request(Call(request=ChatRequest(prompt_token_ids=ids)))) == {
            "prompt_token_ids": [b"[1,2]"]
        }


def test_a_string_is_one_message_of_the_user() -> None:
    message = wire.infer_request(Call(request=ChatRequest(messages="hi")))
    assert json.loads(inputs_of(message)["messages"][0]) == [{"role": "user", "content": "hi"}]


def test_sampling_parameters_are_json() -> None:
    sampling = SamplingParams(logit_bias={42: -1.5}, stop=("a", "b"), stop_token_ids=[1], logprobs=0, ignore_eos=False)
    message = wire.infer_request(Call(request=ChatRequest(prompt="x", sampling=sampling)))
    assert json.loads(inputs_of(message)["sampling_parameters"][0]) == {
        "logit_bias": {"42": -1.5},
        "stop": ["a", "b"],
        "stop_token_ids": [1],
        "logprobs": 0,
        "ignore_eos": False,
    }


def test_the_names_of_sampling_parameters_have_one_list() -> None:
    assert set(SamplingOptions.__annotations__) == set(wire.SAMPLING_PARAMETERS)
    assert set(wire.SAMPLING_PARAMETERS) < set(CallOptions.__annotations__)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: ChatRequest(prompt="x", sampling=SamplingParams(temperature=float("nan"))),
        lambda: ChatRequest(prompt="x", sampling=SamplingParams(seed=np.int64(1))),  # type: ignore[arg-type]
        lambda: ChatRequest(prompt="\ud800"),
        lambda: ChatRequest(messages="\ud800"),
        lambda: ChatRequest(),
        lambda: ChatRequest(prompt="x", messages="y"),
        lambda: ChatRequest(prompt="x", prompt_token_ids=[1]),
        lambda: ChatRequest(messages="x", prompt_token_ids=np.array([1, 2])),  # type: ignore[arg-type]
        lambda: ChatRequest(prompt_token_ids=np.array([1, 2])),  # type: ignore[arg-type]
        lambda: ChatRequest(prompt_token_ids=[1, "a\ud800"]),  # type: ignore[list-item]
        lambda: ChatRequest(prompt="x", add_generation_prompt=True),
        lambda: ChatRequest(prompt_token_ids=[1], add_generation_prompt=False),
    ],
)
def test_what_cannot_be_sent_is_refused(request_of: object) -> None:
    with pytest.raises(InvalidRequestError):
        wire.encode(request_of())  # type: ignore[operator]


def test_batches_that_cannot_be_are_refused() -> None:
    text, messages, ids = ChatRequest(prompt="x"), ChatRequest(messages="y"), ChatRequest(prompt_token_ids=[1])
    for rows in ([], [text, messages], [messages, ids], [ids, text]):
        with pytest.raises(InvalidRequestError):
            wire.encode_rows(rows)


def test_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        Call.of("hi", {"temprature": 1})  # type: ignore[typeddict-unknown-key]


def test_keywords_override_the_base() -> None:
    call = Call.of("hi", {"sampling": SamplingParams(seed=1, top_k=5), "seed": 2, "model": "m"})
    assert (call.request.sampling, call.model) == (SamplingParams(seed=2, top_k=5), "m")


def test_options_of_a_call() -> None:
    call = Call.of(None, {"prompt_token_ids": [1], "headers": {"a": "b"}, "timeout": 1.0})
    assert (call.request.prompt_token_ids, call.headers, call.timeout) == ([1], {"a": "b"}, 1.0)
    without = Call.of("hi", {"headers": None, "add_generation_prompt": None, "prompt_token_ids": None})
    assert (without.headers, without.request) == ({}, ChatRequest(messages="hi"))


def test_priority_and_id() -> None:
    message = wire.infer_request(Call(request=ChatRequest(prompt="x"), model="m", request_id="id", priority=1))
    assert (message.model_name, message.id, message.parameters["priority"].uint64_param) == ("m", "id", 1)


def test_logprobs() -> None:
    entry = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    raw = json.dumps([entry | {"top_logprobs": [entry]}])
    event = wire.decode(infer_response(["é"], logprobs=raw))
    assert event.logprobs[0].bytes == (195, 169)
    assert event.logprobs[0].top_logprobs[0].token == "é"


def test_logprobs_of_a_prompt() -> None:
    known = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    first = {"token": "a", "logprob": None, "bytes": [97], "token_id": 5, "rank": None, "top_logprobs": []}
    second = {**known, "token_id": 7, "rank": 2, "top_logprobs": [{**known, "logprob": -0.1, "token_id": 8}]}
    event = wire.decode(infer_response([""], prompt_logprobs=json.dumps([first, second])))
    assert event.prompt_logprobs == (
        PromptLogprob("a", None, (97,), 5),
        PromptLogprob("é", -0.5, (195, 169), 7, 2, (PromptAlternative("é", -0.1, (195, 169), 8),)),
    )


def test_token_ids_where_a_response_has_them() -> None:
    event = wire.decode(infer_response(["x"], token_ids="[5, 6]", prompt_token_ids="[1]"))
    assert (event.token_ids, event.prompt_token_ids) == ((5, 6), (1,))
    for event in (wire.decode(infer_response(["x"])), wire.decode(infer_response(["x"], token_ids=""))):
        assert (event.token_ids, event.prompt_token_ids, event.prompt_logprobs) == ((), (), ())


def test_the_end_of_a_stream() -> None:
    assert wire.read_stream_response(say("a"))[1] is False
    event, final = wire.read_stream_response(say("b", "stop"))
    assert final
    assert event is not None
    assert event.finish_reason == "stop"
    empty = service_pb2.ModelStreamInferResponse()
    empty.infer_response.parameters["triton_final_response"].bool_param = True
    assert wire.read_stream_response(empty) == (None, True)
    with pytest.raises(OverloadedError):
        wire.read_stream_response(fail("Exceeds maximum queue size"))


def test_other_outputs_are_an_error() -> None:
    cut = infer_response(["hello"])
    cut.raw_output_contents[0] = cut.raw_output_contents[0][:-1]
    bad_logprobs = infer_response(["x"], logprobs='[{"no": "token"}]')
    for response in (cut, bad_logprobs, service_pb2.ModelInferResponse(), infer_response(["a", "b"])):
        with pytest.raises(EngineError):
            wire.decode(response)
