from __future__ import annotations

import openai
import pytest
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from tests.ui.fake_gateway import WAIT_S, FakeGateway, break_off, in_turn, refuse, say, say_and_hold, think_and_call


def client(fake: FakeGateway, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{fake.url}/v1", api_key=key, max_retries=0)


def ask(fake: FakeGateway, key: str = "none") -> Stream[ChatCompletionChunk]:
    messages = [{"role": "user", "content": "你好"}]
    return client(fake, key).chat.completions.create(model="chat", messages=messages, stream=True)


def test_models_are_listed(fake: FakeGateway) -> None:
    models = client(fake).models.list().data
    assert [model.id for model in models] == ["chat", "embeddings"]


def test_an_answer_has_its_pieces_its_finish_reason_and_its_usage(fake: FakeGateway) -> None:
    fake.reply = say("你", "好", finish="length", tokens=5)
    *deltas, finish, usage = ask(fake)
    assert [delta.choices[0].delta.content for delta in deltas] == ["你", "好"]
    assert finish.choices[0].finish_reason == "length"
    assert usage.usage.completion_tokens == 5
    assert fake.wait_for(1).question == "你好"


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, openai.BadRequestError), (429, openai.RateLimitError), (503, openai.InternalServerError)],
)
def test_a_refusal_is_the_packages_exception(
    fake: FakeGateway, status: int, error: type[openai.APIStatusError]
) -> None:
    fake.reply = refuse(status, "not now", "some_code", retry_after=3)
    with pytest.raises(error, match="not now") as caught:
        ask(fake)
    assert caught.value.code == "some_code"
    assert caught.value.response.headers["retry-after"] == "3"


def test_a_wrong_key_is_refused(fake: FakeGateway) -> None:
    fake.key = "right"
    assert list(ask(fake, "right"))
    with pytest.raises(openai.AuthenticationError):
        ask(fake, "wrong")


def test_an_error_event_ends_the_answer(fake: FakeGateway) -> None:
    fake.reply = break_off("some", error="the engine failed")
    with pytest.raises(openai.APIError, match="the engine failed"):
        list(ask(fake))


def test_a_lost_connection_is_noticed(fake: FakeGateway) -> None:
    fake.reply = break_off("some")
    with pytest.raises(openai.APIConnectionError):
        list(ask(fake))


def test_a_client_that_hangs_up_is_noticed(fake: FakeGateway) -> None:
    fake.reply = say_and_hold("some")
    stream = ask(fake)
    next(stream)
    received = fake.wait_for(1)
    assert not received.gone.is_set()
    stream.close()
    assert received.gone.wait(WAIT_S)


def test_reasoning_and_calls_are_deltas_as_the_package_reads_them(fake: FakeGateway) -> None:
    fake.reply = in_turn(think_and_call("Hm.", ("1", "f", '{"a": 1}'), ("2", "g", "{}")), say("done"))
    thought, *deltas, finish, _ = [chunk.choices[0] if chunk.choices else None for chunk in ask(fake)]
    assert thought.delta.reasoning_content == "Hm."
    pieces = [piece for choice in deltas for piece in choice.delta.tool_calls]
    assert [(piece.index, piece.id, piece.function.name) for piece in pieces if piece.id] == [
        (0, "1", "f"), (1, "2", "g"),
    ]  # fmt: skip
    assert "".join(piece.function.arguments for piece in pieces if piece.index == 0) == '{"a": 1}'
    assert finish.finish_reason == "tool_calls"
    assert next(ask(fake)).choices[0].delta.content == "done"
