"""The model `vllm_model` with a Triton of a few lines, which can cancel between models, as tritonserver 2.51 cannot."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from local.options import ROOT

FINAL = 1


@dataclass
class FakeError:
    text: str
    number: object = None
    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"
    NOT_FOUND = "NOT_FOUND"

    def message(self) -> str:
        return self.text

    def code(self) -> object:
        return self.number


@dataclass
class FakeTensor:
    given: str
    value: np.ndarray

    def name(self) -> str:
        return self.given

    def as_numpy(self) -> np.ndarray:
        return self.value


class FakeResponse:
    def __init__(self, output_tensors: list[FakeTensor] | None = None, error: FakeError | None = None) -> None:
        self._tensors, self._error = output_tensors or [], error

    def output_tensors(self) -> list[FakeTensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> FakeError | None:
        return self._error


@dataclass
class FakeCaller:
    """A request and the sender of its responses, of which it keeps the text or the error."""

    inputs_: dict[str, object]
    cancelled: bool = False
    got: list[object] = field(default_factory=list)

    def inputs(self) -> list[FakeTensor]:
        return [FakeTensor(name, np.array([value], np.object_)) for name, value in self.inputs_.items()]

    def parameters(self) -> str:
        return "{}"

    def get_response_sender(self) -> FakeCaller:
        return self

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: FakeResponse, flags: int) -> None:
        assert not self.got or self.got[-1] != "end", "used after the last response"
        error = response.error()
        self.got.append((error.text, error.number) if error else response.output_tensors()[0].value[0])
        if flags == FINAL:
            self.got.append("end")


class Responses:
    """What `chat` sends; `then` happens before one of them."""

    def __init__(self, responses: list[FakeResponse], then: dict[int, Callable[[], None]] | None = None) -> None:
        self._responses, self._then = responses, then or {}
        self.num_read = 0

    def __iter__(self) -> Iterator[FakeResponse]:
        for number, response in enumerate(self._responses):
            self._then.get(number, lambda: None)()
            self.num_read += 1
            yield response


class CancellableResponses(Responses):
    num_cancelled = 0

    def cancel(self) -> None:
        self.num_cancelled += 1


def piece(text: str, reason: str = "") -> FakeResponse:
    values = {"text_output": text.encode(), "finish_reason": reason.encode(), "logprobs": b""}
    counts = {"num_input_tokens": 1, "num_output_tokens": 1}
    return FakeResponse(
        [FakeTensor(name, np.array([[value]], np.object_)) for name, value in (values | counts).items()]
    )


class Triton:
    """The Triton that the model sees; `responses` are those of `chat`."""

    def __init__(self) -> None:
        self.responses: Any = Responses([])
        self.asked: list[dict[str, object]] = []

    def request(self, **arguments: object) -> SimpleNamespace:
        def execute(decoupled: bool) -> object:
            assert decoupled
            self.asked.append(arguments)
            return self.responses

        return SimpleNamespace(exec=execute)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Triton:
    triton = Triton()
    fake = ModuleType("triton_python_backend_utils")
    vars(fake).update(
        TritonError=FakeError, Tensor=FakeTensor, InferenceResponse=FakeResponse, InferenceRequest=triton.request,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return triton


@pytest.fixture
def model(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    _forget(monkeypatch)
    path = ROOT / "model_repository" / "vllm_model" / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("model_of_vllm_model", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    _forget(monkeypatch)
    return loaded


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has taken another `triton_python_backend_utils`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton_io"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def caller() -> FakeCaller:
    return FakeCaller({"text_input": b"Once", "stream": True})


def test_responses_are_sent_on_as_they_come(triton: Triton, model: ModuleType, caller: FakeCaller) -> None:
    triton.responses = Responses([piece("a"), piece("b", "stop"), FakeResponse()])
    model._Forwarded(caller, model.Caller(caller)).run("chat")
    assert caller.got == [b"a", b"b", "end"]
    (asked,) = triton.asked
    assert asked["model_name"] == "chat"
    assert asked["parameters"] == {}


@pytest.mark.parametrize("kind", [Responses, CancellableResponses])
def test_who_leaves_gets_no_more(triton: Triton, model: ModuleType, caller: FakeCaller, kind: type[Responses]) -> None:
    forwarded = model._Forwarded(caller, model.Caller(caller))

    def leave() -> None:
        caller.cancelled = True
        forwarded.cancel_if_wanted()

    triton.responses = kind([piece("a"), piece("b"), piece("c", "length")], {1: leave})
    forwarded.run("chat")
    assert caller.got == [b"a", ("the request was cancelled [code=cancelled]", "CANCELLED"), "end"]
    assert triton.responses.num_read == 3
    assert getattr(triton.responses, "num_cancelled", 1) == 1


def test_chat_is_not_asked_for_one_who_has_left(triton: Triton, model: ModuleType, caller: FakeCaller) -> None:
    caller.cancelled = True
    model._Forwarded(caller, model.Caller(caller)).run("chat")
    assert (triton.asked, caller.got) == ([], [("the request was cancelled [code=cancelled]", "CANCELLED"), "end"])


@pytest.mark.parametrize(
    ("message", "code", "status"),
    [
        ("top_p: too much", "[code=invalid_value field=top_p]", "INVALID_ARG"),
        ("the engine is shutting down", "[code=stopping]", "UNAVAILABLE"),
        ("gone", "[code=cancelled]", "CANCELLED"),
        ("the model could not compute this", "[code=not_computed]", "INTERNAL"),
        ("Exceeds maximum queue size", "", "UNAVAILABLE"),
        ("Request timeout expired", "", "UNAVAILABLE"),
        ("the stub is gone", "", "INTERNAL"),
    ],
)
def test_errors_keep_their_code(
    triton: Triton, model: ModuleType, caller: FakeCaller, message: str, code: str, status: str
) -> None:
    triton.responses = Responses([piece("a"), FakeResponse(error=FakeError(f"{message} {code}".strip()))])
    model._Forwarded(caller, model.Caller(caller)).run("chat")
    ours = code or {"UNAVAILABLE": "[code=overloaded]", "INTERNAL": "[code=engine_failed]"}[status]
    assert caller.got == [b"a", (f"{message} {ours}", status), "end"]


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("gone [code=cancelled]", "cancelled", ("gone [code=cancelled]", "CANCELLED")),
        ("down [code=stopping]", "error", ("down [code=stopping]", "UNAVAILABLE")),
        ("what", "error", ("the answer ended early [code=engine_failed]", "INTERNAL")),
    ],
)
def test_an_error_behind_the_first_response_is_the_callers(
    triton: Triton, model: ModuleType, caller: FakeCaller, text: str, reason: str, expected: tuple[str, str]
) -> None:
    """`chat` writes it as a response, because Triton would lose it."""
    triton.responses = Responses([piece("a"), piece(text, reason)])
    model._Forwarded(caller, model.Caller(caller)).run("chat")
    assert caller.got == [b"a", expected, "end"]


def test_who_leaves_is_noted_for_chat_until_his_request_has_ended(
    triton: Triton, model: ModuleType, caller: FakeCaller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "abandoned"
    monkeypatch.setattr(model.forward.abandoned, "_FOLDER", folder)
    forwarded, seen = model._Forwarded(caller, model.Caller(caller)), []

    def leave() -> None:
        caller.cancelled = True
        forwarded.cancel_if_wanted()
        mark = model.forward.abandoned.mark_of(triton.asked[0]["request_id"])
        seen.append(mark is not None and mark.exists())

    triton.responses = Responses([piece("a"), piece("gone [code=cancelled]", "cancelled")], {1: leave})
    forwarded.run("chat")
    forwarded.cancel_if_wanted()
    assert seen == [True]
    assert not folder.exists()


@pytest.mark.parametrize("name", ["", "x", "forwarded-", "forwarded-../../etc", f"forwarded-{'A' * 32}"])
def test_the_names_of_callers_mean_nothing(model: ModuleType, name: str) -> None:
    assert model.forward.abandoned.mark_of(name) is None


def test_an_answer_that_breaks_off_is_an_error(triton: Triton, model: ModuleType, caller: FakeCaller) -> None:
    triton.responses = Responses([piece("a")])
    model._Forwarded(caller, model.Caller(caller)).run("chat")
    assert caller.got == [b"a", ("the answer ended early [code=engine_failed]", "INTERNAL"), "end"]


def test_every_request_is_answered(triton: Triton, model: ModuleType, caller: FakeCaller) -> None:
    """Also those that are refused, and those that meet a fault of ours; and the model waits for them at its end."""
    refused, broken = FakeCaller({"text_input": b"a", "image": b"b"}), FakeCaller({"sampling_parameters": b"{}"})
    unreadable = FakeCaller({})
    unreadable.parameters = lambda: "no JSON"  # type: ignore[method-assign]
    triton.responses = Responses([piece("a", "stop")])
    served = model.TritonPythonModel()
    config = {"parameters": {"chat_model": {"string_value": "chat"}}}
    served.initialize({"model_name": "vllm_model", "model_config": json.dumps(config)})
    served.execute([unreadable, refused, broken, caller])
    served.finalize()
    assert caller.got == [b"a", "end"]
    assert refused.got[0][1] == "INVALID_ARG"
    assert broken.got == [("internal error [code=internal_error]", "INTERNAL"), "end"]
    assert "could not be read" in unreadable.got[0][0]
