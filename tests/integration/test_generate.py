"""Triton's own HTTP endpoints `generate` and `generate_stream`."""

from __future__ import annotations

import json

import pytest

from local.triton import LocalTriton
from tests.integration.calls import ask, connect, post, request

PROMPT = "Triton is"
PARAMETERS = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}


def expected(triton: LocalTriton) -> str:
    with connect(triton) as stub:
        return ask(stub, request(text_input=PROMPT, sampling_parameters=PARAMETERS)).text


def test_generate_stream_takes_scalar_parameters(triton: LocalTriton) -> None:
    status, body = post(
        triton.http_url + "/v2/models/chat/generate_stream", {"text_input": PROMPT, "parameters": PARAMETERS}
    )
    events = [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line]
    assert status == 200
    assert "".join(event["text_output"] for event in events) == expected(triton)
    assert [event["finish_reason"] for event in events] == [""] * (len(events) - 1) + ["length"]
    assert events[-1]["num_output_tokens"] == 8


def test_generate_gives_one_answer_when_not_streaming(triton: LocalTriton) -> None:
    body = {"text_input": PROMPT, "stream": False, "parameters": PARAMETERS}
    status, text = post(triton.http_url + "/v2/models/chat/generate", body)
    assert (status, json.loads(text)["text_output"]) == (200, expected(triton))


@pytest.mark.parametrize("model", ["chat", "chat_unary"])
@pytest.mark.parametrize("parameters", [{"max_tokens": 8.0}, {"temperature": 0.0}, {"temperature": 1.5, "top_p": 1e-9}])
def test_scalar_parameters_may_be_fractions(triton: LocalTriton, model: str, parameters: dict[str, float]) -> None:
    body = {"text_input": PROMPT, "stream": False, "parameters": {**PARAMETERS, **parameters}}
    status, text = post(f"{triton.http_url}/v2/models/{model}/generate", body)
    assert status == 200, text
    assert json.loads(text)["text_output"] == expected(triton)


@pytest.mark.parametrize("model", ["chat", "chat_unary"])
def test_a_bad_fraction_is_a_400_that_names_it(triton: LocalTriton, model: str) -> None:
    for parameters in ({"temperature": 2.5}, {"max_tokens": 2.5}):
        body = {"text_input": PROMPT, "stream": False, "parameters": parameters}
        status, text = post(f"{triton.http_url}/v2/models/{model}/generate", body)
        assert status == 400
        assert f"{next(iter(parameters))}: " in text


def test_generate_of_chat_unary_takes_messages_as_json_text(triton: LocalTriton) -> None:
    messages = json.dumps([{"role": "user", "content": "你是谁？"}])
    status, text = post(triton.http_url + "/v2/models/chat_unary/generate", {"messages": messages})
    assert status == 200
    assert json.loads(text)["text_output"].startswith("我是 tiny-chat")


def test_switches_are_accepted_as_parameters(triton: LocalTriton) -> None:
    body = {"text_input": PROMPT, "parameters": {**PARAMETERS, "exclude_input_in_output": False, "stream": False}}
    status, text = post(triton.http_url + "/v2/models/chat/generate", body)
    assert (status, json.loads(text)["text_output"]) == (200, PROMPT + expected(triton))


def test_an_unknown_parameter_is_a_400_that_names_it(triton: LocalTriton) -> None:
    for door in ("chat/generate", "chat/generate_stream", "chat_unary/generate"):
        status, text = post(
            f"{triton.http_url}/v2/models/{door}", {"text_input": PROMPT, "parameters": {"max_token": 8}}
        )
        assert status == 400
        assert "max_token: unknown parameter (value 8); allowed are max_tokens" in text
