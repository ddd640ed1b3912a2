from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from chat_page import generation
from chat_page.conversation import Answer, Call, Turn
from chat_page.generation import LEASE_S, Generation
from chat_page.options import Options, Sampling
from chat_page.settings import PageSettings
from tests.ui.fake_gateway import (
    WAIT_S,
    FakeGateway,
    break_off,
    refuse,
    say,
    say_and_hold,
    think_and_call,
    think_and_say,
)

MESSAGES = [{"role": "user", "content": "你好"}]


def start(settings: PageSettings, options: Options | None = None, lease_s: float = LEASE_S) -> Generation:
    return Generation(settings, Turn("你好"), MESSAGES, options or Options(model="chat"), lease_s=lease_s)


def result(running: Generation) -> Answer:
    assert running.look(WAIT_S)
    return running.turn.answer


def wait_for_text(running: Generation, text: str) -> None:
    while running.turn.answer.text != text:
        assert not running.look(0.01)


def test_an_answer_is_complete_with_its_figures(fake: FakeGateway, settings: PageSettings) -> None:
    fake.reply = say("您", "好", tokens=5)
    answer = result(start(settings))
    assert (answer.text, answer.state, answer.finish_reason, answer.model) == ("您好", "complete", "stop", "chat")
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, 5)
    assert answer.first_token_s is not None
    assert answer.duration_s is not None
    assert 0 < answer.first_token_s <= answer.duration_s


def test_the_request_is_what_the_page_says(fake: FakeGateway, settings: PageSettings) -> None:
    options = Options(model="other", sampling=Sampling(temperature=0.5, max_tokens=9, top_k=3))
    result(start(replace(settings, api_key="sk-1"), options))
    request = fake.wait_for(1)
    assert request.headers["authorization"] == "Bearer sk-1"
    assert request.body == {
        "model": "other",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_tokens": 9,
        "top_k": 3,
    }


def test_a_key_for_somebody_else_is_not_sent(
    fake: FakeGateway, settings: PageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-elsewhere")
    result(start(settings))
    assert "sk-elsewhere" not in str(fake.wait_for(1).headers)


def test_without_a_model_the_gateways_first_chat_model_answers(fake: FakeGateway, settings: PageSettings) -> None:
    fake.models.reverse()
    assert result(start(settings, Options())).model == "chat"


def test_an_adapter_is_not_the_first(fake: FakeGateway, settings: PageSettings) -> None:
    fake.models.insert(0, {**fake.models[0], "id": "adapter", "parent": "chat"})
    assert result(start(settings, Options())).model == "chat"


def test_stopping_hangs_up_and_keeps_what_has_come(fake: FakeGateway, settings: PageSettings) -> None:
    fake.reply = say_and_hold("half")
    running = start(settings)
    wait_for_text(running, "half")
    running.stop()
    assert fake.wait_for(1).gone.wait(WAIT_S)
    answer = result(running)
    assert (answer.text, answer.state, answer.tokens_per_s) == ("half", "stopped", None)


def test_stopping_before_the_first_token_hangs_up_too(fake: FakeGateway, settings: PageSettings) -> None:
    fake.reply = say_and_hold("")
    running = start(settings)
    request = fake.wait_for(1)
    running.stop()
    assert request.gone.wait(WAIT_S)
    assert result(running).state == "stopped"


def test_an_answer_that_nobody_looks_at_is_given_up(fake: FakeGateway, settings: PageSettings) -> None:
    fake.reply = say_and_hold("half")
    start(settings, lease_s=0.2)
    assert fake.wait_for(1).gone.wait(WAIT_S)


def test_an_answer_that_is_looked_at_goes_on(fake: FakeGateway, settings: PageSettings) -> None:
    end = threading.Event()
    fake.reply = say_and_hold("half", end)
    running = start(settings, lease_s=1.0)
    for _ in range(24):
        assert not running.look(0.05)
    end.set()
    assert result(running).state == "complete"


@pytest.mark.parametrize(
    ("reply", "text", "words"),
    [
        (refuse(429, code="overloaded", retry_after=2), "", "Try again in 2 seconds"),
        (break_off("half", error="the engine failed"), "half", "was interrupted. The engine failed."),
        (break_off("half"), "half", "cannot be reached"),
        (say("half", finish=""), "half", "was interrupted"),
    ],
)
def test_a_failure_is_a_sentence_and_keeps_what_has_come(
    fake: FakeGateway, settings: PageSettings, reply: generation.Any, text: str, words: str
) -> None:
    fake.reply = reply
    answer = result(start(settings))
    assert (answer.state, answer.text) == ("failed", text)
    assert words in answer.problem


def test_a_gateway_that_is_not_there_is_a_sentence(fake: FakeGateway, settings: PageSettings) -> None:
    fake.stop()
    answer = result(start(settings))
    assert "cannot be reached" in answer.problem
    assert str(fake.port) not in answer.problem


def test_reasoning_and_calls_are_taken_from_the_stream(fake: FakeGateway, settings: PageSettings) -> None:
    fake.reply = think_and_call("Hm.", ("1", "f", '{"a": 1}'), ("2", "g", "{}"))
    answer = result(start(settings))
    assert (answer.text, answer.reasoning, answer.state) == ("", "Hm.", "complete")
    assert answer.open_calls == (Call("1", "f", '{"a": 1}'), Call("2", "g", "{}"))
    assert answer.completion_tokens == 9


def test_reasoning_may_have_its_older_name_alone(fake: FakeGateway, settings: PageSettings) -> None:
    fake.reply = think_and_say("嗯。", "好")
    assert (result(start(settings)).reasoning, result(start(settings)).text) == ("嗯。", "好")


def test_tools_a_schema_and_thinking_are_sent(fake: FakeGateway, settings: PageSettings) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    schema = {"type": "object"}
    result(
        start(settings, Options(model="chat", tools=(tool,), schema=schema, thinking=False, sampling=Sampling(top_k=3)))
    )
    body = fake.wait_for(1).body
    assert body["tools"] == [tool]
    assert body["response_format"] == {
        "type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }  # fmt: skip
    assert (body["top_k"], body["chat_template_kwargs"]) == (3, {"enable_thinking": False})


def test_an_answer_that_breaks_off_in_its_reasoning_was_one(fake: FakeGateway, settings: PageSettings) -> None:
    fake.reply = think_and_call("Hm.", finish="")
    assert "was interrupted" in result(start(settings)).problem
