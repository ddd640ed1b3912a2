"""Whatever comes in: the caller's mistake is the caller's error, and nobody else's."""

from __future__ import annotations

import json
import random
import string
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.triton import LocalTriton
from tests.integration.calls import LONG, VOCAB_SIZE, Stream, add_input, ask, chat, connect, infer, request, stubs_of

HELLO = chat("Hello!")


def sampling(**parameters: object) -> dict[str, Any]:
    return {"text_input": "Hello", "sampling_parameters": parameters}


def message(**fields: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello", **fields}]}


# Name -> inputs, and what the error must say: the field, the value, what is allowed.
REFUSED_BY_THE_MODEL: dict[str, tuple[dict[str, Any], list[str]]] = {
    "both prompts": (
        {"messages": HELLO, "text_input": "a"},
        ["exactly one of messages, text_input, prompt_token_ids is required, messages and text_input given"],
    ),
    "no prompt": ({"stream": True}, ["exactly one of messages, text_input, prompt_token_ids is required, none given"]),
    "text and token ids": (
        {"text_input": "a", "prompt_token_ids": [1]},
        ["is required, text_input and prompt_token_ids given"],
    ),
    "token ids not json": ({"prompt_token_ids": "1, 2"}, ["prompt_token_ids: not JSON"]),
    "token ids no list": ({"prompt_token_ids": {"a": 1}}, ["prompt_token_ids: must be a JSON array", "{'a': 1}"]),
    "no token ids": ({"prompt_token_ids": []}, ["prompt_token_ids: the prompt has no tokens", "at least one"]),
    "token id of a wrong type": ({"prompt_token_ids": [1, "2"]}, ["prompt_token_ids[1]", "'2'", "integer"]),
    "token id of no token": (
        {"prompt_token_ids": [VOCAB_SIZE]},
        [f"prompt_token_ids: token id {VOCAB_SIZE}", f"0 to {VOCAB_SIZE - 1}"],
    ),
    "token ids over the context": ({"prompt_token_ids": [7] * 2048}, ["the prompt has 2048", "2048"]),
    "generation prompt without messages": (
        sampling(add_generation_prompt=False),
        ["add_generation_prompt: only for messages", "False"],
    ),
    "generation prompt of a wrong type": (
        {"messages": HELLO, "sampling_parameters": {"add_generation_prompt": 1}},
        ["add_generation_prompt: must be true or false", "1"],
    ),
    "messages not json": ({"messages": "{"}, ["messages: not JSON"]),
    "messages no list": ({"messages": {"a": 1}}, ["messages: must be a valid list", "{'a': 1}"]),
    "messages nested deeply": ({"messages": "[" * 100_000}, ["messages: nested too deeply"]),
    "no messages": ({"messages": []}, ["messages: the list is empty", "at least one"]),
    "empty prompt": ({"text_input": ""}, ["text_input: empty", "at least one"]),
    "unknown role": (message(role="robot"), ["messages[0].role", "'robot'", "'user', 'assistant' or 'tool'"]),
    "content of a wrong type": (message(content=5), ["messages[0].content", "5", "string"]),
    "content missing": ({"messages": [{"role": "user"}]}, ["messages[0].content", "required"]),
    "unknown field of a message": (message(nick="Bob"), ["messages[0].nick", "'Bob'"]),
    "name of a wrong type": (message(name=5), ["messages[0].name", "5", "string"]),
    "sampling parameters not json": (
        {"text_input": "a", "sampling_parameters": "{"},
        ["sampling_parameters: not JSON"],
    ),
    "sampling parameters no object": (
        {"text_input": "a", "sampling_parameters": [1]},
        ["sampling_parameters: must be a JSON object", "[1]"],
    ),
    "unknown parameter": (sampling(max_token=5), ["max_token: unknown", "5", "allowed are max_tokens, min_tokens"]),
    "wrong type": (sampling(max_tokens="five"), ["max_tokens", "'five'", "integer"]),
    "fraction": (sampling(top_k=1.5), ["top_k", "1.5", "integer"]),
    "truth value for a number": (sampling(temperature=True), ["temperature", "True", "number"]),
    "NaN": (sampling(temperature=float("nan")), ["temperature", "nan", "finite"]),
    "infinity": (sampling(presence_penalty=float("inf")), ["presence_penalty", "inf", "finite"]),
    "temperature too high": (sampling(temperature=2.5), ["temperature", "2.5", "less than or equal to 2"]),
    "temperature negative": (sampling(temperature=-1), ["temperature", "-1", "greater than or equal to 0"]),
    "top_p negative": (sampling(top_p=-0.5), ["top_p", "-0.5", "greater than or equal to 0"]),
    "penalty out of range": (sampling(frequency_penalty=-3), ["frequency_penalty", "-3", "-2"]),
    "no tokens": (sampling(max_tokens=0), ["max_tokens: 0", "only with prompt_logprobs"]),
    "more tokens than the context": (sampling(max_tokens=2048), ["max_tokens: 2048", "2048 tokens", "at most"]),
    "prompt over the context": ({"text_input": "word " * 3000}, ["the prompt has", "2048"]),
    "min_tokens over max_tokens": (sampling(max_tokens=3, min_tokens=5), ["min_tokens: 5", "max_tokens, 3"]),
    "logit_bias of no token": (
        sampling(logit_bias={str(VOCAB_SIZE): 1}),
        ["logit_bias", str(VOCAB_SIZE), f"0 to {VOCAB_SIZE - 1}"],
    ),
    "logit_bias key no number": (sampling(logit_bias={"cat": 1}), ["logit_bias", "'cat'", "token ids"]),
    "logit_bias too strong": (sampling(logit_bias={"5": 101}), ["logit_bias.5", "101", "100"]),
    "stop_token_ids of no token": (sampling(stop_token_ids=[-1]), ["stop_token_ids", "-1", f"0 to {VOCAB_SIZE - 1}"]),
    "empty stop": (sampling(stop=""), ["stop", "''", "at least 1"]),
    "too many stops": (sampling(stop=["x"] * 17), ["stop", "17", "16"]),
    "too many logprobs": (sampling(logprobs=21), ["logprobs: 21", "20"]),
    "negative seed": (sampling(seed=-2), ["seed", "-2", "0"]),
    "unknown scalar": ({"text_input": "a", "parameters": {"bogus": "x"}}, ["bogus: unknown", "'x'", "allowed are"]),
    "NUL in a prompt": ({"text_input": "a\0b"}, ["text_input", "NUL", "position 1"]),
    "NUL in a message": (message(content="a\0b"), ["messages[0].content", "NUL", "position 1"]),
    "prompt not UTF-8": ({"text_input": b"ab\xff"}, ["text_input: not valid UTF-8", "byte 2"]),
    "messages not UTF-8": ({"messages": b"\xfe"}, ["messages: not valid UTF-8", "byte 0"]),
    "parameters not UTF-8": (
        {"text_input": "a", "sampling_parameters": b"\xff"},
        ["sampling_parameters: not valid UTF-8"],
    ),
    "half a surrogate": ({"messages": r'[{"role":"user","content":"\ud800"}]'}, ["messages[0].content", "surrogate"]),
}


def raw(name: str, datatype: str, shape: list[int], content: bytes, model: str) -> pb.ModelInferRequest:
    asked = request(model, text_input="a") if name != "text_input" else pb.ModelInferRequest(model_name=model)
    add_input(asked, name, datatype, shape, content)
    return asked


WORD = struct.pack("<I", 1) + b"a"
# What Triton 2.51 itself refuses: an input, and what the error says.
REFUSED_BY_TRITON = {
    "unknown tensor": (("bogus", "BYTES", [1, 1], WORD), "unexpected inference input 'bogus'"),
    "wrong datatype": (("text_input", "INT32", [1, 1], b"\0" * 4), "data-type is 'INT32'"),
    "wrong datatype of a switch": (("stream", "BYTES", [1, 1], WORD), "data-type is 'BYTES'"),
    "two elements a row": (("text_input", "BYTES", [1, 2], WORD * 2), "unexpected shape"),
    "no batch dimension": (("text_input", "BYTES", [1], WORD), "unexpected shape"),
    "no rows": (("text_input", "BYTES", [0, 1], b""), "got 0"),
    "rows that do not match": (("stream", "BOOL", [2, 1], b"\0\0"), "batch"),
    "text shorter than it says": (("text_input", "BYTES", [1, 1], struct.pack("<I", 9) + b"a"), "incomplete string"),
    "no length before the text": (("text_input", "BYTES", [1, 1], b"\1"), "incomplete string length"),
}


@pytest.fixture
def stub(triton: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with connect(triton) as stub:
        yield stub


@pytest.mark.parametrize("case", REFUSED_BY_THE_MODEL)
def test_a_mistake_is_named_with_its_value_and_what_is_allowed(stub: GRPCInferenceServiceStub, case: str) -> None:
    inputs, fragments = REFUSED_BY_THE_MODEL[case]
    streamed = ask(stub, request(**inputs))
    whole = infer(stub, request("chat_unary", **inputs))
    assert (streamed.answers, whole.answers, whole.code) == ([], [], "INVALID_ARGUMENT")
    assert [fragment for fragment in fragments if fragment not in streamed.error] == [], streamed.error
    assert whole.error == streamed.error
    assert "/" not in streamed.error.replace("and/or", "")


@pytest.mark.parametrize("value", ["x", "", 1, 0.5])
def test_a_switch_of_a_wrong_type_is_refused_alike(stub: GRPCInferenceServiceStub, value: object) -> None:
    asked = {"text_input": "a", "parameters": {"stream": value, "max_tokens": 1}}
    streamed, whole = ask(stub, request(**asked)), infer(stub, request("chat_unary", **asked))
    for refused in (streamed, whole):
        assert "stream: must be true or false (got " in refused.error
        assert str(value) in refused.error
    assert whole.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("case", REFUSED_BY_TRITON)
def test_what_does_not_fit_the_contract_is_refused_by_triton(stub: GRPCInferenceServiceStub, case: str) -> None:
    tensor, fragment = REFUSED_BY_TRITON[case]
    streamed = ask(stub, raw(*tensor, model="chat"))
    assert streamed.answers == []
    assert fragment in streamed.error
    assert infer(stub, raw(*tensor, model="chat_unary")).code == "INVALID_ARGUMENT"


def test_a_request_without_any_input_is_refused(stub: GRPCInferenceServiceStub) -> None:
    assert ask(stub, request()).error
    assert infer(stub, request("chat_unary")).code == "INVALID_ARGUMENT"


def test_chat_takes_one_row_and_says_who_takes_more(stub: GRPCInferenceServiceStub) -> None:
    two, many = (ask(stub, raw("text_input", "BYTES", [rows, 1], WORD * rows, "chat")) for rows in (2, 100))
    assert "a request has one conversation" in two.error or "batch-size must be <= 1" in two.error
    assert "batch-size must be <=" in many.error


def test_an_unknown_model_is_not_found(stub: GRPCInferenceServiceStub) -> None:
    assert infer(stub, request("gpt", text_input="a")).code == "NOT_FOUND"
    assert ask(stub, request("gpt", text_input="a")).error == "Request for unknown model: 'gpt' is not found"


def test_a_stream_with_status_ends_with_invalid_argument(stub: GRPCInferenceServiceStub) -> None:
    refused = Stream(stub, request(**sampling(max_tokens=0)), with_status=True).wait()
    assert (refused.code, refused.answers) == ("INVALID_ARGUMENT", [])


def test_mistakes_of_others_do_not_touch_a_running_stream(stub: GRPCInferenceServiceStub) -> None:
    bystander = request(text_input="Once", sampling_parameters={**LONG, "max_tokens": 800, "temperature": 1, "seed": 1})
    alone = ask(stub, bystander)
    stream = Stream(stub, bystander).started()
    refused = 0
    while not stream.is_over:
        for inputs, _ in REFUSED_BY_THE_MODEL.values():
            refused += bool(ask(stub, request(**inputs)).error)
        for tensor, _ in REFUSED_BY_TRITON.values():
            refused += bool(ask(stub, raw(*tensor, model="chat")).error)
    assert refused >= len(REFUSED_BY_THE_MODEL) + len(REFUSED_BY_TRITON)
    assert stream.wait().text == alone.text


def test_garbage_does_not_kill_the_model(triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    stubs = stubs_of(triton)
    before = ask(stub, request(messages=HELLO)).text
    dice = random.Random(20)
    for _ in range(300):
        result = ask(stub, garbage(dice))
        assert result.error or result.last.is_final
    assert ask(stub, request(messages=HELLO)).text == before
    assert (stubs_of(triton), triton.poll()) == (stubs, None)


NAMES = [
    "messages",
    "text_input",
    "prompt_token_ids",
    "sampling_parameters",
    "stream",
    "exclude_input_in_output",
    "bogus",
]
PARAMETERS = ["max_tokens", "temperature", "top_k", "top_p", "stop", "logit_bias", "seed", "logprobs", "priority", "x"]


def garbage(dice: random.Random) -> pb.ModelInferRequest:
    """Half sense, half nonsense; what may be run is short."""
    asked = pb.ModelInferRequest(model_name="chat", id=noise(dice).decode("latin-1"))
    asked.parameters["max_tokens"].int64_param = dice.randint(0, 3)
    for name in dice.sample(NAMES, dice.randint(1, 4)):
        if dice.random() < 0.8:
            content = dice.choice([noise(dice), json.dumps(nonsense(dice)).encode(), json.dumps(HELLO).encode()])
            add_input(asked, name, "BYTES", [1, 1], struct.pack("<I", len(content)) + content)
        else:
            datatype = dice.choice(["BYTES", "BOOL", "INT32", "FP32", "?"])
            add_input(asked, name, datatype, [dice.randint(-1, 3) for _ in range(dice.randint(0, 3))], noise(dice))
    return asked


def noise(dice: random.Random) -> bytes:
    return dice.randbytes(dice.randint(0, 60))


def nonsense(dice: random.Random, depth: int = 0) -> object:
    kind = dice.randint(0, 6 if depth < 3 else 4)
    if kind == 5:
        return [nonsense(dice, depth + 1) for _ in range(dice.randint(0, 4))]
    if kind == 6:
        return {dice.choice(PARAMETERS): nonsense(dice, depth + 1) for _ in range(dice.randint(0, 4))}
    text = "".join(dice.choices(string.printable + "é漢\ud800\0", k=dice.randint(0, 9)))
    return [None, dice.random() < 0.5, dice.randint(-(2**70), 2**70), dice.uniform(-1e9, 1e9), text][kind]
