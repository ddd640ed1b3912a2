"""Answers that must follow something, from a real server with the real weights of models/tiny-chat."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jsonschema
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.triton import LocalTriton
from tests.integration.calls import LONG, Stream, ask, chat, connect, infer, post, request

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "kind": {"enum": ["cat", "猫", "😀"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
REGEX = r"[A-Z][a-z]{2,8}, \d{4}"
CHOICES = ["yes", "no", "也许", "😀"]
GRAMMAR = 'start: "(" item ("," item){0,3} ")"\nitem: "a" | "b" | "中"\n'
KINDS: dict[str, object] = {"json": PERSON, "regex": REGEX, "choice": CHOICES, "grammar": GRAMMAR}


@pytest.fixture(scope="module")
def stub(triton: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with connect(triton) as connected:
        yield connected


def check(kind: str, text: str) -> None:
    match kind:
        case "json":
            jsonschema.validate(json.loads(text), PERSON)
        case "regex":
            assert re.fullmatch(REGEX, text)
        case "choice":
            assert text in CHOICES
        case "grammar":
            assert re.fullmatch(r"\([ab中](,[ab中]){0,3}\)", text)


def wanted(kind: str, value: object, model: str = "chat", **sampling: object) -> pb.ModelInferRequest:
    parameters = {"structured_outputs": {kind: value}, "max_tokens": 300, "temperature": 1.0, "seed": 7, **sampling}
    return request(model, messages=chat("Who are you?"), sampling_parameters=parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_through_chat_and_chat_unary(stub: GRPCInferenceServiceStub, kind: str) -> None:
    streamed, unary = ask(stub, wanted(kind, KINDS[kind])), infer(stub, wanted(kind, KINDS[kind], "chat_unary"))
    assert streamed.last.finish_reason == "stop"
    check(kind, streamed.text)
    assert (unary.text, unary.last.finish_reason) == (streamed.text, "stop")


def test_as_a_scalar_parameter_of_generate(triton: LocalTriton) -> None:
    parameters = {"structured_outputs": json.dumps({"choice": CHOICES}), "max_tokens": 20}
    status, raw = post(
        f"{triton.http_url}/v2/models/chat_unary/generate", {"text_input": "x", "parameters": parameters}
    )
    assert status == 200, raw
    assert json.loads(raw)["text_output"] in CHOICES


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("json", {"type": "strin"}, "Invalid type: strin"),
        ("regex", "a(?=b)", "look-around"),
        ("choice", [], "at least 1"),
        ("grammar", "start: foo", "unknown name"),
        ("json", {"anyOf": [{"type": "integer", "multipleOf": 99991 + 2 * i} for i in range(3)]}, "too complex"),
        ("grammar", "start: A0\n" + "".join(f"A{i}: A{i + 1}\n" for i in range(6000)) + 'A6000: "x"', "too complex"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_field_and_touches_nobody(
    stub: GRPCInferenceServiceStub, kind: str, value: object, words: str
) -> None:
    bystander = request(text_input="Once", sampling_parameters={**LONG, "max_tokens": 300, "temperature": 1, "seed": 1})
    alone = ask(stub, bystander).text
    stream = Stream(stub, bystander).started()
    result = ask(stub, wanted(kind, value))
    assert f"structured_outputs.{kind}: " in result.error
    assert words in result.error
    assert result.error.endswith(f"[code=invalid_value field=structured_outputs.{kind}]")
    assert stream.wait().text == alone
