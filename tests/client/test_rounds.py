"""`run_tools` of both clients against the fake server, which is the model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.client.fake_server import WAIT_S, FakeTriton, Received, pb, say, say_calls
from tests.client.test_both_clients import Run, run_async, run_sync
from triton_chat import errors
from triton_chat.client import AsyncChatClient, ChatClient
from triton_chat.types import ChatRequest, SamplingParams

OTHER = {"type": "function", "function": {"name": "other"}}


def add(a: int, b: int) -> int:
    return a + b


def fail() -> None:
    raise RuntimeError("no")


async def add_later(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@pytest.fixture(params=[run_sync, run_async], ids=["threads", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


def script(fake: FakeTriton, *answers: Sequence[pb.ModelStreamInferResponse]) -> None:
    """Each request gets the next of these answers; the last goes on."""
    left = list(answers)

    def reply(_: Received) -> Iterator[pb.ModelStreamInferResponse]:
        yield from left.pop(0) if len(left) > 1 else left[0]

    fake.reply = reply


def parameters(received: Received) -> dict[str, Any]:
    return json.loads(received.tensor("chat_parameters")[0])


def messages(received: Received) -> list[dict[str, Any]]:
    return json.loads(received.tensor("messages")[0])


SUM = say_calls(("call_1", "add", '{"a": 2, "b": 40}'))
ANSWER = [say("It is 42.", "stop", 3)]


def test_calls_are_run_and_the_model_is_told(fake: FakeTriton, run: Run) -> None:
    script(fake, [say("", reasoning_output="Let me see."), *SUM], ANSWER)
    done = run(fake.url, "run_tools", "2 + 40?", [add, fail], temperature=0)
    assert (done.answer.text, done.complete, len(done.results)) == ("It is 42.", True, 2)
    assert list(done.messages) == [
        {"role": "user", "content": "2 + 40?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Let me see.",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 40}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
    ]
    first, second = fake.requests
    assert messages(second) == list(done.messages[:3])
    assert [tool["function"]["name"] for tool in parameters(first)["tools"]] == ["add", "fail"]
    assert parameters(first) == parameters(second)
    assert second.tensor("sampling_parameters") == ['{"temperature":0}']


def test_several_calls_keep_their_order_and_a_failure_is_a_result(fake: FakeTriton, run: Run) -> None:
    script(fake, say_calls(("1", "fail", "{}"), ("2", "add", '{"a": 1}'), ("3", "nope", "{}")), ANSWER)
    done = run(fake.url, "run_tools", [{"role": "user", "content": "x"}], [add, fail])
    contents = [(message["tool_call_id"], message["content"]) for message in done.messages if message["role"] == "tool"]
    assert [identity for identity, _ in contents] == ["1", "2", "3"]
    for (_, content), words in zip(contents, ["RuntimeError: no", "b: Field required", "no tool 'nope'"], strict=True):
        assert words in json.loads(content)["error"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_is_forced_once(fake: FakeTriton, run: Run, choice: object) -> None:
    script(fake, SUM, ANSWER)
    run(fake.url, "run_tools", "x", [add], tool_choice=choice)
    assert [parameters(received)["tool_choice"] for received in fake.requests] == [choice, "auto"]


def test_the_rounds_are_bounded(fake: FakeTriton, run: Run) -> None:
    script(fake, SUM)
    done = run(fake.url, "run_tools", "x", [add], max_rounds=2)
    assert (len(done.results), done.complete, done.answer.finish_reason) == (3, False, "tool_calls")
    assert [message["role"] for message in done.messages] == ["user", *["assistant", "tool"] * 2, "assistant"]
    with pytest.raises(errors.InvalidRequestError, match="max_rounds"):
        run(fake.url, "run_tools", "x", [add], max_rounds=0)


def test_a_call_that_was_cut_is_not_run_and_not_in_the_conversation(fake: FakeTriton, run: Run) -> None:
    script(fake, say_calls(("1", "add", '{"a": 1, "b": 2}'), ("2", "add", '{"a": 1, "b'), finish="length"))
    done = run(fake.url, "run_tools", "x", [add])
    assert (done.complete, len(done.results), len(done.answer.tool_calls)) == (False, 1, 2)
    assert done.messages[-1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    "arguments", ['{"a": }', "[1]", '{"a": NaN}', r'{"a": "\ud800"}', r'{"a": "\u0000"}', "[" * 9999]
)
def test_arguments_that_no_server_takes_are_answered_and_not_sent_again(
    fake: FakeTriton, run: Run, arguments: str
) -> None:
    script(fake, say_calls(("1", "add", arguments)), ANSWER)
    done = run(fake.url, "run_tools", "x", [add])
    assert (done.complete, done.answer.text) == (True, "It is 42.")
    assert done.results[0].tool_calls[0].arguments == arguments
    _, called, told, _ = done.messages
    assert called["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
    assert "the arguments of add do not fit" in json.loads(told["content"])["error"]


def test_characters_that_no_server_takes_are_replaced_in_a_result(fake: FakeTriton, run: Run) -> None:
    def name() -> str:
        return "a\udcff\0b"

    script(fake, say_calls(("1", "name", "{}")), ANSWER)
    assert run(fake.url, "run_tools", "x", [name]).messages[2]["content"] == "a?\ufffdb"


def test_a_tool_of_the_callers_own_ends_the_run(fake: FakeTriton, run: Run) -> None:
    script(fake, say_calls(("1", "add", '{"a": 1, "b": 2}'), ("2", "other", "{}")))
    done = run(fake.url, "run_tools", "x", [add], tools=[OTHER])
    assert [call.name for call in done.open_calls] == ["add", "other"]
    assert len(fake.requests) == 1
    assert [tool["function"]["name"] for tool in parameters(fake.requests[0])["tools"]] == ["add", "other"]


def test_what_cannot_be_a_tool_is_not_asked(fake: FakeTriton, run: Run) -> None:
    with pytest.raises(errors.InvalidRequestError, match="<lambda>"):
        run(fake.url, "run_tools", "x", [lambda: 1])
    assert fake.requests == []


def test_coroutine_functions_wait_for_each_other(fake: FakeTriton) -> None:
    """Each of the two calls ends only once the other runs."""
    met = threading.Barrier(2)

    def meet() -> str:
        met.wait(WAIT_S)
        return "met"

    script(fake, say_calls(("1", "meet", "{}"), ("2", "meet", "{}"), ("3", "add_later", '{"a": 1, "b": 2}')), ANSWER)

    async def both() -> Any:
        async with AsyncChatClient(fake.url) as client:
            return await client.run_tools("x", [meet, add_later])

    contents = [message["content"] for message in asyncio.run(both()).messages if message["role"] == "tool"]
    assert contents == ["met", "met", "3"]


def test_a_row_of_a_batch_has_its_own_tools(client: ChatClient, fake: FakeTriton) -> None:
    own = ChatRequest(messages="hi", tools=[OTHER], tool_choice="required", sampling=SamplingParams(max_tokens=3))
    client.generate_batch(["ho", own], chat_template_kwargs={"enable_thinking": False}, sampling=SamplingParams(seed=1))
    received = fake.next_request()
    assert [json.loads(row) for row in received.tensor("chat_parameters")] == [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"tools": [OTHER], "tool_choice": "required"},
    ]
    assert [json.loads(row) for row in received.tensor("sampling_parameters")] == [{"seed": 1}, {"max_tokens": 3}]


@pytest.mark.parametrize("rows", [{"prompts": ["x"]}, {"conversations": [ChatRequest(messages="x")]}])
def test_a_batch_refuses_what_no_row_would_take(client: ChatClient, rows: Any) -> None:
    with pytest.raises(errors.InvalidRequestError, match="tools: only for messages"):
        client.generate_batch(**rows, tools=[OTHER])
    with pytest.raises(errors.InvalidRequestError, match="parse: only for messages"):
        client.generate_batch(**rows, parse=False)
    client.generate_batch(**rows, tools=None)


def test_a_batch_takes_no_keyword_that_there_is_not(client: ChatClient) -> None:
    with pytest.raises(TypeError, match="wobble"):
        client.generate_batch(["ho"], wobble=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "first", [say("", reasoning_output="hm"), say("", tool_calls='[{"index":0,"function":{"name":"f"}}]')]
)
def test_the_first_token_may_be_one_of_reasoning_or_of_a_call(
    client: ChatClient, fake: FakeTriton, first: pb.ModelStreamInferResponse
) -> None:
    fake.reply = lambda _: iter([first, say("", "stop", 0)])
    assert client.generate("x").ttft_s is not None


def test_an_empty_answer_is_a_message(client: ChatClient, fake: FakeTriton) -> None:
    fake.reply = lambda _: iter([say("", "stop", 1)])
    assert client.generate("x").message == {"role": "assistant", "content": ""}
