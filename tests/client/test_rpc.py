"""Calls as data: what each asks, in what order, and what it makes of the answers. No server, no connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import grpc
import pytest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.client.fake_embeddings import by_length, vectors_response
from tests.client.fake_server import pb, repository_config, tokens_response
from triton_chat import chat, control, embeddings, errors, tokenizer
from triton_chat.kinds import Kinds
from triton_chat.rpc import Method, Rpc, Rpcs
from triton_chat.types import Timeouts, Tokens

T = TypeVar("T")
Answers = Callable[[Rpc[Any]], Any]

UNREACHABLE = [errors.ServerUnavailableError("gone"), errors.ServerStoppingError("going"), errors.StreamTimeoutError()]


def carried_out(call: Rpcs[T], answers: Answers) -> tuple[T, list[Rpc[Any]]]:
    """What the call comes to and the RPCs it took; an answer that is an error is raised in it."""
    steps, asked = iter(call), []
    try:
        rpc = next(steps)
        while True:
            asked.append(rpc)
            answer = answers(rpc)
            rpc = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
    except StopIteration as end:
        return end.value, asked


def always(answer: Any) -> Answers:
    return lambda _: answer


def names_of(asked: list[Rpc[Any]]) -> list[tuple[str, str]]:
    return [(rpc.method, getattr(rpc.request, "name", "")) for rpc in asked]


def repository(states: dict[str, str], configs: dict[str, Any]) -> Answers:
    """A server with these models; what has no config here is unknown to it."""
    index = pb.RepositoryIndexResponse()
    for name, state in states.items():
        index.models.add(name=name, version="1", state=state)

    def answers(rpc: Rpc[Any]) -> Any:
        if rpc.method == "RepositoryIndex":
            return index
        if rpc.method == "ModelReady":
            return pb.ModelReadyResponse(ready=True)
        found = configs.get(rpc.request.name)
        return pb.ModelConfigResponse(config=found) if found else errors.ModelNotFoundError(rpc.request.name)

    return answers


def test_the_service_has_every_method() -> None:
    with grpc.insecure_channel("localhost:1") as channel:
        assert not [method for method in get_args(Method) if not hasattr(GRPCInferenceServiceStub(channel), method)]


@pytest.mark.parametrize("live", [True, False])
def test_is_live(live: bool) -> None:
    answer, asked = carried_out(control.is_live(), always(pb.ServerLiveResponse(live=live)))
    assert (answer, names_of(asked)) == (live, [("ServerLive", "")])


@pytest.mark.parametrize(
    ("model", "asked", "answer"),
    [
        (None, ("ServerReady", ""), pb.ServerReadyResponse(ready=True)),
        ("chat", ("ModelReady", "chat"), pb.ModelReadyResponse(ready=True)),
    ],
)
def test_is_ready(model: str | None, asked: tuple[str, str], answer: Any) -> None:
    ready, rpcs = carried_out(control.is_ready(model), always(answer))
    assert (ready, names_of(rpcs)) == (True, [asked])


@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", [control.is_live, control.is_ready, lambda: control.is_ready("chat")])
def test_a_server_that_cannot_be_reached_is_neither(call: Callable[[], Rpcs[bool]], error: Exception) -> None:
    assert carried_out(call(), always(error))[0] is False


@pytest.mark.parametrize(
    "call", [control.is_live, control.is_ready, control.server_metadata, lambda: control.models(Kinds())]
)
def test_other_errors_are_the_callers(call: Callable[[], Rpcs[Any]]) -> None:
    with pytest.raises(errors.EngineError, match="mine"):
        carried_out(call(), always(errors.EngineError("mine")))


def test_models_asks_only_loaded_ones_and_each_kind_once() -> None:
    answers = repository({"chat": "READY", "broken": "UNAVAILABLE"}, {"chat": repository_config("chat")})
    kinds = Kinds()
    models, asked = carried_out(control.models(kinds), answers)
    assert [(model.name, model.ready, model.kind) for model in models] == [
        ("chat", True, "chat"),
        ("broken", False, "other"),
    ]
    assert names_of(asked) == [("RepositoryIndex", ""), ("ModelReady", "chat"), ("ModelConfig", "chat")]
    again, asked = carried_out(control.models(kinds), answers)
    assert (again, names_of(asked)) == (models, [("RepositoryIndex", ""), ("ModelReady", "chat")])


def test_a_model_without_a_config_is_of_no_kind_and_those_after_it_are_asked() -> None:
    answers = repository({"gone": "READY", "chat": "READY"}, {"chat": repository_config("chat")})
    models, _ = carried_out(control.models(Kinds()), answers)
    assert [model.kind for model in models] == ["other", "chat"]


def test_the_server_in_three_questions() -> None:
    answers = {
        "ServerMetadata": pb.ServerMetadataResponse(name="t", version="2", extensions=["a"]),
        "ServerLive": pb.ServerLiveResponse(live=True),
        "ServerReady": errors.StreamTimeoutError(),
    }
    info, asked = carried_out(control.server_metadata(), lambda rpc: answers[rpc.method])
    assert [rpc.method for rpc in asked] == list(answers)
    assert (info.name, info.version, info.extensions, info.live, info.ready) == ("t", "2", ("a",), True, False)


def test_control_calls_leave_the_limit_to_the_client() -> None:
    answers = repository({"chat": "READY"}, {})
    _, asked = carried_out(control.models(Kinds()), answers)
    assert {rpc.timeout for rpc in asked} == {None}


@pytest.mark.parametrize("timeout", [None, 3.0])
def test_the_tokenizer(timeout: float | None) -> None:
    answer = tokens_response("[7]", "a")
    for call in (tokenizer.tokenize("chat", None, "a", {}, timeout), tokenizer.detokenize("chat", [7], timeout)):
        tokens, asked = carried_out(call, always(answer))
        assert tokens == Tokens((7,), "a", 100)
        assert [(rpc.method, rpc.timeout) for rpc in asked] == [("ModelInfer", timeout)]
    assert tokenizer.tokenizer_info("chat", timeout).timeout == timeout


class TestEmbed:
    @staticmethod
    def rows(rpc: Rpc[Any]) -> int:
        return int(rpc.request.inputs[0].shape[0])

    def vectors(self, rpc: Rpc[Any]) -> pb.ModelInferResponse:
        count = self.rows(rpc)
        return vectors_response(by_length(["a"] * count), [1] * count)

    def test_its_requests_share_one_time_limit(self) -> None:
        result, asked = carried_out(embeddings.embed(["a"] * 130, "m", {}, 5.0), self.vectors)
        assert len(result.num_tokens) == sum(map(self.rows, asked)) == 130
        limits = [rpc.timeout or 0.0 for rpc in asked]
        assert 5.0 >= limits[0] > limits[1] > limits[2] > 0

    def test_nothing_is_sent_after_an_error(self) -> None:
        asked = []

        def answers(rpc: Rpc[Any]) -> Any:
            asked.append(rpc)
            return errors.OverloadedError("full") if len(asked) == 2 else self.vectors(rpc)

        with pytest.raises(errors.OverloadedError):
            carried_out(embeddings.embed(["a"] * 130, "m", {}, 5.0), answers)
        assert len(asked) == 2


class TestStream:
    LIMITS = Timeouts(first_token=1, idle=2, total=3)

    def test_limits_of_the_client(self) -> None:
        rpc = chat.stream("hi", {}, self.LIMITS)
        assert (rpc.first_token_s, rpc.idle_s, rpc.timeout) == (1, 2, 3)
        assert rpc.request.id

    def test_limits_of_the_call(self) -> None:
        rpc = chat.stream("hi", {"idle_timeout": 5, "timeout": 6, "request_id": "x"}, self.LIMITS)
        assert (rpc.first_token_s, rpc.idle_s, rpc.timeout, rpc.request.id) == (1, 5, 6, "x")
