"""Clients of Triton's vLLM backend, unmodified: their calls as they make them, to `vllm_model`."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcclient_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.triton import LocalTriton
from tests.integration.calls import Metrics, ask, connect, eventually, pending, post, request, settled, unbatched

MODEL = "vllm_model"
PROMPTS = ["Triton is\n", "Once upon a time", "你好，", "The future of AI is"]
SAMPLE = {"temperature": "0.1", "top_p": "0.95", "max_tokens": "100"}
"""What the backend's sample client sends."""
GREEDY = {"temperature": "0", "top_p": "1"}
AT_ONCE = 16


@pytest.fixture
def stub(triton: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with connect(triton) as stub:
        yield stub


def tensors(prompt: str, **others: object) -> list[grpcclient.InferInput]:
    """Of shape [1], made as the sample client makes them."""
    inputs = [grpcclient.InferInput("text_input", [1], "BYTES")]
    inputs[-1].set_data_from_numpy(np.array([prompt.encode("utf-8")], dtype=np.object_))
    for name, value in others.items():
        is_switch = isinstance(value, bool)
        inputs.append(grpcclient.InferInput(name, [1], "BOOL" if is_switch else "BYTES"))
        data = [value] if is_switch else [json.dumps(value).encode("utf-8")]
        inputs[-1].set_data_from_numpy(np.array(data, dtype=bool if is_switch else np.object_))
    return inputs


async def sample_client(triton: LocalTriton, stream: bool, sampling: dict[str, str]) -> dict[str, list[str]]:
    """Its way: all prompts on one stream, the parameters as a tensor and once more as parameters."""
    results: dict[str, list[str]] = {str(number): [] for number in range(len(PROMPTS))}

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, prompt in enumerate(PROMPTS):
            yield {
                "model_name": MODEL,
                "inputs": tensors(prompt, stream=stream, sampling_parameters=sampling),
                "outputs": [grpcclient.InferRequestedOutput("text_output")],
                "request_id": str(number),
                "parameters": sampling,
            }

    async with grpcclient_aio.InferenceServerClient(url=triton.grpc_address) as client:
        left = len(PROMPTS)
        async for result, error in client.stream_infer(inputs_iterator=requests(), stream_timeout=None):
            assert error is None
            for output in result.as_numpy("text_output"):
                results[result.get_response().id].append(output.decode("utf-8"))
            left -= result.get_response().parameters["triton_final_response"].bool_param
            if not left:
                break
    return results


def expected(stub: GRPCInferenceServiceStub, prompt: str, max_tokens: int = 16) -> str:
    """What `chat` says."""
    return ask(stub, request(text_input=prompt, sampling_parameters={"max_tokens": max_tokens, "temperature": 0})).text


class TestSampleClient:
    @pytest.mark.alone  # a late reader gets the answer in one piece
    async def test_streaming(self, triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
        results = await sample_client(triton, True, {**GREEDY, "max_tokens": "100"})
        assert ["".join(pieces) for pieces in results.values()] == [expected(stub, p, 100) for p in PROMPTS]
        assert all(len(pieces) > 1 for pieces in results.values())

    async def test_one_answer_begins_with_the_prompt(self, triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
        results = await sample_client(triton, False, {**GREEDY, "max_tokens": "100"})
        assert list(results.values()) == [[prompt + expected(stub, prompt, 100)] for prompt in PROMPTS]

    async def test_with_its_own_parameters(self, triton: LocalTriton) -> None:
        streamed, whole = await asyncio.gather(*(sample_client(triton, stream, SAMPLE) for stream in (True, False)))
        assert all("".join(pieces) for pieces in streamed.values())
        assert all(text.startswith(prompt) for prompt, (text,) in zip(PROMPTS, whole.values(), strict=True))


class Client:
    """The other way: tritonclient's stream with a callback."""

    def __init__(self, triton: LocalTriton) -> None:
        self._client = grpcclient.InferenceServerClient(triton.grpc_address)
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))

    def __call__(self, inputs: list[grpcclient.InferInput], **options: object) -> list[Any]:
        """The responses of one request; an error is raised."""
        self._client.async_stream_infer(MODEL, inputs=inputs, **options)
        results = []
        while not results or not results[-1].get_response().parameters["triton_final_response"].bool_param:
            result, error = self._answers.get(timeout=60)
            if error is not None:
                raise error
            results.append(result)
        return results

    def close(self) -> None:
        self._client.stop_stream()
        self._client.close()


@pytest.fixture
def client(triton: LocalTriton) -> Iterator[Client]:
    client = Client(triton)
    yield client
    client.close()


class TestParameters:
    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_without_the_tensor(self, client: Client, stub: GRPCInferenceServiceStub, prompt: str) -> None:
        """And without max_tokens an answer has 16 tokens, as vLLM's."""
        (result,) = client(tensors(prompt, stream=False), parameters=GREEDY)
        assert result.as_numpy("text_output").tolist() == [(prompt + expected(stub, prompt)).encode()]
        assert [output.name for output in result.get_response().outputs] == ["text_output"]

    def test_the_prompt_can_be_left_out(self, client: Client, stub: GRPCInferenceServiceStub) -> None:
        inputs = tensors(PROMPTS[0], stream=False, exclude_input_in_output=True, sampling_parameters=GREEDY)
        assert client(inputs)[0].as_numpy("text_output")[0].decode() == expected(stub, PROMPTS[0])

    def test_switches_as_parameters(self, client: Client, stub: GRPCInferenceServiceStub) -> None:
        switches = {"stream": True, "return_finish_reason": True, "exclude_input_in_output": "true"}
        results = client(tensors(PROMPTS[0], sampling_parameters=GREEDY), parameters=switches)
        assert len(results) > 1
        assert b"".join(r.as_numpy("text_output")[0] for r in results).decode() == expected(stub, PROMPTS[0])
        assert results[-1].as_numpy("finish_reason").tolist() == [b"length"]

    def test_empty_final_responses_may_be_asked_for(self, client: Client) -> None:
        (result,) = client(tensors(PROMPTS[0], stream=False), enable_empty_final_response=True)
        assert len(result.as_numpy("text_output")) == 1


@pytest.mark.parametrize("stream", [True, False])
class TestAdditionalOutputs:
    def test_all_of_them(self, client: Client, stub: GRPCInferenceServiceStub, stream: bool) -> None:
        wanted = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
        switches = {f"return_{name}": True for name in wanted}
        sampling = {**GREEDY, "logprobs": "2", "ignore_eos": "true"}
        results = client(tensors("Triton is", stream=stream, sampling_parameters=sampling, **switches))
        found = {name: [result.as_numpy(name) for result in results] for name in wanted}
        plain = {"max_tokens": 16, "temperature": 0, "logprobs": 2, "ignore_eos": True}
        chat = ask(stub, request(text_input="Triton is", sampling_parameters=plain))
        entries = [entry for answer in chat.answers for entry in answer.logprobs]
        assert [reason[0] for reason in found["finish_reason"]] == [b"None"] * (len(results) - 1) + [b"length"]
        assert found["cumulative_logprob"][-1] == pytest.approx([sum(e["logprob"] for e in entries)], abs=1e-4)
        assert {int(count[0]) for count in found["num_input_tokens"]} == {chat.last.num_input_tokens}
        assert sum(int(count[0]) for count in found["num_output_tokens"]) == len(entries) == 16
        ours = [token for text in found["logprobs"] for token in json.loads(text[0])]
        assert [next(iter(token)) for token in ours] == [str(entry["token_id"]) for entry in entries]
        for token, entry in zip(ours, entries, strict=True):
            assert next(iter(token.values()))["decoded_token"] == entry["token"]
            assert [other["rank"] for other in token.values()] == [1, 2]
        types = {output.name: (output.datatype, list(output.shape)) for output in results[0].get_response().outputs}
        assert types == {
            "text_output": ("BYTES", [1]),
            "finish_reason": ("BYTES", [1]),
            "cumulative_logprob": ("FP32", [1]),
            "logprobs": ("BYTES", [1]),
            "num_input_tokens": ("UINT32", [1]),
            "num_output_tokens": ("UINT32", [1]),
        }

    def test_none_of_them(self, client: Client, stream: bool) -> None:
        names = {"finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens"}
        switches = {f"return_{name}": False for name in names}
        for result in client(tensors("Triton is", stream=stream, sampling_parameters=GREEDY, **switches)):
            assert all(result.as_numpy(name) is None for name in names)
        (whole,) = client(tensors("Triton is", stream=False, return_logprobs=True, return_cumulative_logprob=True))
        assert whole.as_numpy("logprobs").tolist() == [b"null"]
        assert whole.as_numpy("cumulative_logprob")[0] < 0


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "sentence"),
        [
            ({"parameters": {"lora_name": "alpaca"}}, "lora_name: there is no adapter 'alpaca'; this model has none"),
            ({"parameters": {"n": 2}}, "n: 2 given, but there is one answer to a request"),
            ({"image": "aGVsbG8="}, "image: images are not served"),
            ({"stream": True, "exclude_input_in_output": False}, "exclude_input_in_output: false is not allowed with"),
            ({"parameters": {"max_token": 8}}, "max_token: unknown parameter (value 8); allowed are max_tokens"),
            ({"parameters": {"temperature": 2.5}}, "temperature: "),
            ({"sampling_parameters": '{"temperature": "warm"}'}, "temperature: "),
            ({"sampling_parameters": "{"}, "sampling_parameters: not JSON"),
            ({"text_input": ""}, "text_input: empty"),
            ({"max_tokens": 100_000}, "max_tokens: 100000 and a prompt of"),
        ],
    )
    def test_a_mistake_is_a_400_that_names_it(
        self, triton: LocalTriton, client: Client, body: dict[str, Any], sentence: str
    ) -> None:
        for door in ("generate", "generate_stream"):
            status, text = post(f"{triton.http_url}/v2/models/{MODEL}/{door}", {"text_input": "Triton is", **body})
            assert status == 400
            assert sentence in json.loads(text.removeprefix("data: "))["error"]
            assert "INVALID_ARG" not in text

    def test_on_a_stream_the_others_go_on(self, client: Client) -> None:
        with pytest.raises(grpcclient.InferenceServerException, match="lora_name: there is no adapter 'x'"):
            client(tensors("Triton is", stream=True, sampling_parameters={"lora_name": "x"}))
        assert client(tensors("Triton is", stream=True, sampling_parameters=GREEDY))

    def test_shapes_are_those_of_the_backend(self, stub: GRPCInferenceServiceStub) -> None:
        assert "unexpected shape for input 'text_input'" in ask(stub, request(MODEL, text_input="Triton is")).error


class TestCancel:
    def test_a_request_that_waits_is_never_begun(self, triton: LocalTriton) -> None:
        """Those that run go on to their end before Triton 25.04, which cannot cancel between models."""
        before = settled(triton)
        channels = [grpc.insecure_channel(triton.grpc_address) for _ in range(2)]
        running, waiting = (GRPCInferenceServiceStub(channel) for channel in channels)
        calls = [running.ModelStreamInfer(iter([long_request(400)]), timeout=120) for _ in range(AT_ONCE)]
        eventually(lambda: Metrics(triton)("triton_chat_requests_running") == AT_ONCE, within=30)
        others = [waiting.ModelStreamInfer(iter([long_request(160)]), timeout=60) for _ in range(2)]
        eventually(lambda: pending(Metrics(triton), MODEL) == 1, within=30)  # one is in hand, one is behind it
        for call in others:
            call.cancel()
        assert sum(len(list(call)) for call in calls) >= AT_ONCE
        grown = settled(triton) - before
        assert grown("triton_chat_requests_total") == AT_ONCE
        for channel in channels:
            channel.close()

    @pytest.mark.parametrize("stream", [True, False])
    def test_leaving_in_the_middle_hangs_nothing(
        self, triton: LocalTriton, stub: GRPCInferenceServiceStub, stream: bool
    ) -> None:
        before = settled(triton)
        call = stub.ModelStreamInfer(iter([long_request(1000, stream)]), timeout=60)
        eventually(lambda: Metrics(triton)("triton_chat_requests_running") == 1, within=10)
        call.cancel()
        with pytest.raises(grpc.RpcError, match="CANCELLED"):
            list(call)
        assert (settled(triton) - before)("triton_chat_requests_total") == 1
        url = f"{triton.http_url}/v2/models/{MODEL}/generate"
        assert post(url, {"text_input": "Triton is", "max_tokens": 1})[0] == 200


def long_request(max_tokens: int, stream: bool = True) -> pb.ModelInferRequest:
    sampling = {"max_tokens": max_tokens, "ignore_eos": True}
    return unbatched(request(MODEL, text_input="Once", sampling_parameters=sampling, stream=stream))


class TestGenerate:
    """As the backend's documentation has it."""

    def test_one_answer(self, triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
        body = {"text_input": "Triton is", "parameters": {"stream": False, "temperature": 0}}
        status, text = post(f"{triton.http_url}/v2/models/{MODEL}/generate", body)
        assert (status, json.loads(text)) == (
            200,
            {
                "model_name": MODEL,
                "model_version": "1",
                "text_output": "Triton is" + expected(stub, "Triton is"),
            },
        )

    def test_the_answer_alone(self, triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
        options = {"stream": False, "temperature": 0, "exclude_input_in_output": True, "max_tokens": 5}
        body = {"id": "42", "text_input": "Triton is", "parameters": options}
        status, text = post(f"{triton.http_url}/v2/models/{MODEL}/generate", body)
        assert (status, json.loads(text)["text_output"]) == (200, expected(stub, "Triton is", 5))

    def test_a_stream(self, triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
        body = {"text_input": "Triton is", "parameters": {"stream": True, "temperature": 0, "max_tokens": 12}}
        status, text = post(f"{triton.http_url}/v2/models/{MODEL}/generate_stream", body)
        events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]
        assert status == 200
        assert len(events) > 1
        assert "".join(event["text_output"] for event in events) == expected(stub, "Triton is", 12)


@pytest.mark.parametrize("model", ["chat", MODEL])
def test_inputs_of_perf_analyzer_fit(stub: GRPCInferenceServiceStub, model: str) -> None:
    """It takes the shapes from the model's config, and the values from a JSON file such as this."""
    given = {
        "text_input": ["Triton is"],
        "stream": [True],
        "sampling_parameters": ['{"temperature": "0", "max_tokens": "8"}'],
        "exclude_input_in_output": [True],
    }
    config = stub.ModelConfig(pb.ModelConfigRequest(name=model)).config
    message = request(model, **{name: value for name, (value,) in given.items()})
    if not config.max_batch_size:
        unbatched(message)
    for tensor in message.inputs:
        assert next(list(spec.dims) for spec in config.input if spec.name == tensor.name) == [1]
    responses = list(stub.ModelStreamInfer(iter([message])))
    assert not any(response.error_message for response in responses)
    assert len(responses) > 1
