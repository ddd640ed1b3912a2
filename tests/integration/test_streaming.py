"""`chat` over gRPC: what a stream is made of, and that streams do not disturb each other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from queue import Queue

import grpc.aio
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
from transformers import AutoModelForCausalLM
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.options import DEFAULT_MODEL
from local.triton import LocalTriton
from tests.integration.calls import CALL_S, Result, ask, ask_all, chat, connect, infer, request, request_rows
from tests.integration.engines import NATIVE

WHO = chat("Who are you?")
QUESTIONS = [
    "Who are you?",
    "你是谁？",
    "What is Triton?",
    "What is continuous batching?",
    "Hello!",
    "What is a KV cache?",
]


@pytest.fixture
def stub(triton: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with connect(triton) as stub:
        yield stub


def assert_well_formed(result: Result) -> None:
    """Each stream ends once, and its last response is a data response with the final flag."""
    assert not result.error
    assert [answer.is_final for answer in result.answers] == [False] * (len(result.answers) - 1) + [True]
    assert [bool(answer.finish_reason) for answer in result.answers] == [answer.is_final for answer in result.answers]
    counts = [answer.num_output_tokens for answer in result.answers]
    assert counts == sorted(counts)
    assert len({answer.num_input_tokens for answer in result.answers}) == 1


@pytest.mark.parametrize("question", QUESTIONS[:2])
def test_a_stream_is_the_unary_answer_in_pieces(stub: GRPCInferenceServiceStub, question: str) -> None:
    streamed = ask(stub, request(messages=chat(question)))
    whole = infer(stub, request("chat_unary", messages=chat(question)))
    assert_well_formed(streamed)
    assert len(streamed.answers) > 3
    assert (streamed.text, streamed.last.finish_reason) == (whole.text, "stop")
    assert streamed.last.num_output_tokens == whole.last.num_output_tokens > 3
    assert streamed.last.num_input_tokens == whole.last.num_input_tokens > 3


async def text_alone(stub: GRPCInferenceServiceStub, question: str) -> str:
    """The text of an answer; no other output is asked for."""
    message = request(messages=chat(question), sampling_parameters={"max_tokens": 24, "ignore_eos": True})
    message.outputs.add(name="text_output")
    text = ""
    async for response in stub.ModelStreamInfer(iter([message]), timeout=CALL_S):
        answer = response.infer_response
        assert [output.name for output in answer.outputs] == ["text_output"], response.error_message
        text += answer.raw_output_contents[0][4:].decode()
    return text


async def test_many_callers_may_ask_for_the_text_alone(triton: LocalTriton) -> None:
    """Triton drops the other outputs; in 24.10 it broke the memory of the model's process while it did."""
    async with grpc.aio.insecure_channel(triton.grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for _ in range(12):
            texts = await asyncio.gather(*(text_alone(stub, question) for question in QUESTIONS * 3))
            assert texts[: len(QUESTIONS)] * 3 == texts
            assert all(texts)


def test_the_length_limit_ends_an_answer(stub: GRPCInferenceServiceStub) -> None:
    result = ask(stub, request(messages=WHO, sampling_parameters={"max_tokens": 5}))
    assert_well_formed(result)
    assert (result.last.finish_reason, result.last.num_output_tokens) == ("length", 5)


def test_not_streaming_gives_one_response(stub: GRPCInferenceServiceStub) -> None:
    streamed = ask(stub, request(messages=WHO))
    for one in (
        ask(stub, request(messages=WHO, stream=False)),
        ask(stub, request(messages=WHO, parameters={"stream": False})),
    ):
        assert_well_formed(one)
        assert len(one.answers) == 1
        assert (one.text, one.last.num_output_tokens) == (streamed.text, streamed.last.num_output_tokens)


def test_the_prompt_comes_first_when_asked_for(stub: GRPCInferenceServiceStub) -> None:
    short = {"max_tokens": 6, "temperature": 0}
    plain = ask(stub, request(text_input="Triton is", sampling_parameters=short))
    echoed = ask(stub, request(text_input="Triton is", sampling_parameters=short, exclude_input_in_output=False))
    assert_well_formed(echoed)
    assert echoed.answers[0].text.startswith("Triton is")
    assert echoed.text == "Triton is" + plain.text


def test_logprobs_cover_every_token(stub: GRPCInferenceServiceStub) -> None:
    result = ask(stub, request(messages=WHO, sampling_parameters={"logprobs": 2, "max_tokens": 8, "temperature": 0}))
    entries = [entry for answer in result.answers for entry in answer.logprobs]
    assert len(entries) == result.last.num_output_tokens == 8
    for entry in entries:
        assert set(entry) == {"token", "logprob", "bytes", "token_id", "top_logprobs"}
        assert entry["logprob"] <= 0
        assert bytes(entry["bytes"]).decode(errors="replace") == entry["token"]
        assert [set(top) for top in entry["top_logprobs"]] == [{"token", "logprob", "bytes", "token_id"}] * 2
        assert entry["top_logprobs"][0] == {key: entry[key] for key in ("token", "logprob", "bytes", "token_id")}
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == result.text


def test_logprobs_of_the_prompt_are_those_of_transformers(stub: GRPCInferenceServiceStub, engine_name: str) -> None:
    """A prompt of several chunks, twice: the second time its beginning is in the cache."""
    text = "Triton is a server. 月亮是🌙。 def f(x):\n    return x * 2\n" * 30
    sampling = {"prompt_logprobs": 2, "max_tokens": 2, "temperature": 0, "return_token_ids": True}
    for result in (ask(stub, request(text_input=text, sampling_parameters=sampling)) for _ in range(2)):
        entries = [entry for answer in result.answers for entry in answer.prompt_logprobs]
        ids = result.answers[0].prompt_token_ids
        assert [entry["token_id"] for entry in entries] == ids
        assert len(ids) == result.last.num_input_tokens > 512
        # vLLM keeps them until the whole prompt is scored.
        assert (len([answer for answer in result.answers if answer.prompt_logprobs]) > 1) == (engine_name == NATIVE)
        assert result.last.num_cached_tokens == 0
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == text
        assert (entries[0]["logprob"], entries[0]["rank"], entries[0]["top_logprobs"]) == (None, None, [])
        rows = plain_logprobs(ids)
        for entry, row in zip(entries[1:], rows, strict=False):
            assert entry["logprob"] == pytest.approx(row[entry["token_id"]].item(), abs=1e-3)
            assert [top["logprob"] for top in entry["top_logprobs"]] == pytest.approx(row.topk(2)[0].tolist(), abs=1e-3)
        assert len([i for answer in result.answers for i in answer.token_ids]) == result.last.num_output_tokens == 2


def plain_logprobs(ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def test_the_prompt_alone(stub: GRPCInferenceServiceStub) -> None:
    result = ask(stub, request(text_input="Triton is", sampling_parameters={"max_tokens": 0, "prompt_logprobs": 0}))
    assert (result.text, result.last.num_output_tokens, result.last.finish_reason) == ("", 0, "length")
    entries = [entry for answer in result.answers for entry in answer.prompt_logprobs]
    assert "".join(entry["token"] for entry in entries) == "Triton is"
    echoed = ask(
        stub, request(text_input="Triton is", sampling_parameters={"max_tokens": 0}, exclude_input_in_output=False)
    )
    assert (echoed.text, echoed.last.num_output_tokens) == ("Triton is", 0)


def test_rows_have_scores_and_ids_each_where_asked_for(stub: GRPCInferenceServiceStub) -> None:
    sampling = [{"prompt_logprobs": 0, "return_token_ids": True, "max_tokens": 3}, {"max_tokens": 3}]
    asked, other = infer(
        stub, request_rows("chat_unary", text_input=["Triton is"] * 2, sampling_parameters=sampling)
    ).answers
    assert len(asked.prompt_logprobs) == len(asked.prompt_token_ids) == asked.num_input_tokens
    assert len(asked.token_ids) == asked.num_output_tokens
    assert (other.prompt_logprobs, other.prompt_token_ids, other.token_ids) == ([], [], [])


def test_without_logprobs_there_are_none(stub: GRPCInferenceServiceStub) -> None:
    assert not any(answer.logprobs for answer in ask(stub, request(messages=WHO)).answers)


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(stub: GRPCInferenceServiceStub) -> None:
    whole = ask(stub, request(messages=WHO, sampling_parameters={"temperature": 0})).text
    stop = whole[len(whole) // 2 :][:4]
    stopped = ask(stub, request(messages=WHO, sampling_parameters={"temperature": 0, "stop": [stop, "never"]}))
    assert_well_formed(stopped)
    assert (stopped.text, stopped.last.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_seed_repeats_a_sampled_answer(stub: GRPCInferenceServiceStub) -> None:
    def sampled(seed: int) -> str:
        parameters = {"temperature": 2, "seed": seed, "max_tokens": 24, "ignore_eos": True}
        return ask(stub, request(text_input="Once", sampling_parameters=parameters)).text

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) == 4


def test_equal_prompts_share_their_cache(stub: GRPCInferenceServiceStub) -> None:
    prompt = "The cache is shared between requests whose prompts begin alike. " * 6
    first, second = (ask(stub, request(text_input=prompt, sampling_parameters={"max_tokens": 4})) for _ in range(2))
    assert first.text == second.text
    assert 0 < second.last.num_cached_tokens < second.last.num_input_tokens


async def test_32_streams_at_once_give_what_each_gives_alone(
    triton: LocalTriton, stub: GRPCInferenceServiceStub
) -> None:
    messages = [
        request(
            messages=chat(QUESTIONS[index % len(QUESTIONS)]),
            sampling_parameters={"max_tokens": 16 + index, "temperature": (index % 3) / 2, "seed": index},
        )
        for index in range(32)
    ]
    alone = [ask(stub, message) for message in messages]
    together = await ask_all(triton, messages)
    for result in together:
        assert_well_formed(result)
    assert [result.text for result in together] == [result.text for result in alone]
    assert [result.last.num_output_tokens for result in together] == [r.last.num_output_tokens for r in alone]


async def test_three_times_as_many_streams_as_places_lose_nothing(triton: LocalTriton) -> None:
    """The engine has 64 places; the other streams wait in Triton's queue."""
    results = await ask_all(
        triton,
        (
            request(text_input=f"Number {index}:", sampling_parameters={"max_tokens": 3, "ignore_eos": True})
            for index in range(192)
        ),
    )
    for result in results:
        assert_well_formed(result)
        assert result.last.num_output_tokens == 3


def test_tritonclient_streams(triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    results: Queue[tuple[triton_grpc.InferResult, Exception | None]] = Queue()
    with triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        client.async_stream_infer("chat", [_bytes_input(triton_grpc, "messages", json.dumps(WHO))])
        text = ""
        while True:
            result, error = results.get(timeout=30)
            assert error is None
            text += result.as_numpy("text_output")[0, 0].decode()
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()
    assert text == ask(stub, request(messages=WHO)).text


async def test_tritonclient_streams_from_asyncio(triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    async def requests():
        yield {"model_name": "chat", "inputs": [_bytes_input(triton_aio, "messages", json.dumps(WHO))]}

    text = ""
    async with triton_aio.InferenceServerClient(triton.grpc_address) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            text += result.as_numpy("text_output")[0, 0].decode()
    assert text == ask(stub, request(messages=WHO)).text


def test_a_plain_inference_request_is_refused_by_chat(stub: GRPCInferenceServiceStub) -> None:
    assert infer(stub, request(messages=WHO)).code == "UNIMPLEMENTED"


def test_rows_are_answered_in_their_order(stub: GRPCInferenceServiceStub) -> None:
    rows = infer(stub, request_rows("chat_unary", messages=[json.dumps(chat(question)) for question in QUESTIONS]))
    alone = [ask(stub, request(messages=chat(question))) for question in QUESTIONS]
    assert [row.text for row in rows.answers] == [result.text for result in alone]
    assert [row.finish_reason for row in rows.answers] == ["stop"] * len(QUESTIONS)
    assert [row.num_output_tokens for row in rows.answers] == [result.last.num_output_tokens for result in alone]


def test_each_row_has_its_own_parameters(stub: GRPCInferenceServiceStub) -> None:
    parameters = [json.dumps({"max_tokens": limit, "ignore_eos": True}) for limit in (3, 1, 2)]
    rows = infer(stub, request_rows("chat_unary", text_input=["a", "b", "c"], sampling_parameters=parameters))
    assert [row.num_output_tokens for row in rows.answers] == [3, 1, 2]


def test_a_bad_row_fails_the_request_by_its_number(stub: GRPCInferenceServiceStub) -> None:
    rows = infer(stub, request_rows("chat_unary", messages=[json.dumps(WHO), "{", json.dumps(WHO)]))
    assert rows.code == "INVALID_ARGUMENT"
    assert rows.error.startswith("row 1: messages: not JSON")


def _bytes_input(library, name: str, text: str):
    tensor = library.InferInput(name, [1, 1], "BYTES")
    return tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
