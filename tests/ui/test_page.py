"""The page in Streamlit's own test harness, without a browser; tests/browser has the browser."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from chat_page.options import Sampling
from chat_page.settings import KEY_VARIABLE, URL_VARIABLE, PageSettings
from tests.ui.fake_gateway import FakeGateway, break_off, in_turn, refuse, say, think_and_call, think_and_say

SCRIPT = Path(__file__).parents[2] / "ui" / "page.py"
TIMEOUT_S = 20


def open_page() -> AppTest:
    """As a browser opens it; what was known about models is forgotten."""
    st.cache_data.clear()
    return AppTest.from_file(str(SCRIPT), default_timeout=TIMEOUT_S).run()


@pytest.fixture
def page(settings: PageSettings) -> AppTest:
    return open_page()


def ask(page: AppTest, question: str) -> None:
    page.chat_input(key="input").set_value(question).run()


def texts(page: AppTest) -> list[str]:
    """Questions, answers, figures and problems, from top to bottom."""
    values = [getattr(element, "value", None) for message in page.chat_message for element in message]
    return [value for value in values if value is not None]  # a place that nothing stands in has none


def test_an_empty_page_offers_examples_and_models(page: AppTest) -> None:
    assert not page.exception
    assert page.title[0].value == "What would you like to know?"
    assert page.selectbox(key="model").options == ["chat"]
    assert page.button(key="example-0").label == "What is continuous batching?"
    assert page.button(key="example-3").label == "什么是连续批处理？"


def test_an_example_is_asked_by_clicking_it(fake: FakeGateway, page: AppTest) -> None:
    page.button(key="example-3").click().run()
    assert fake.wait_for(1).question == "什么是连续批处理？"
    assert texts(page)[:2] == ["什么是连续批处理？", "Hello world!"]
    assert not page.title


def test_an_answer_is_shown_with_its_figures(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = say("您好", "，**世界**", tokens=12)
    ask(page, "你好")
    question, answer, figures = texts(page)
    assert (question, answer) == ("你好", "您好，**世界**")
    assert "first token" in figures
    assert "12 tokens" in figures
    assert figures.endswith("chat")


def test_a_second_turn_sends_the_first(fake: FakeGateway, page: AppTest) -> None:
    ask(page, "one")
    ask(page, "two")
    contents = [(message["role"], message["content"]) for message in fake.wait_for(2).body["messages"]]
    assert contents == [("user", "one"), ("assistant", "Hello world!"), ("user", "two")]
    assert len(page.chat_message) == 4


def test_what_the_sidebar_says_is_sent(fake: FakeGateway, page: AppTest) -> None:
    page.text_area(key="system").set_value("请简短地回答。")
    page.number_input(key="temperature").set_value(0.5)
    page.number_input(key="max-tokens").set_value(40)
    page.number_input(key="top-k").set_value(3)
    ask(page, "hello")
    body = fake.wait_for(1).body
    assert body["messages"][0] == {"role": "system", "content": "请简短地回答。"}
    assert (body["temperature"], body["max_tokens"], body["top_k"]) == (0.5, 40, 3)
    assert "seed" not in body


def test_what_a_value_may_be_is_the_engines_to_judge(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = refuse(400, "temperature: must be less than or equal to 2 (got 9.5)")
    page.number_input(key="temperature").set_value(9.5)
    page.number_input(key="max-tokens").set_value(-1)
    ask(page, "hello")
    body = fake.wait_for(1).body
    assert (body["temperature"], body["max_tokens"]) == (9.5, -1)
    assert "must be less than or equal to 2" in page.error[0].value


def test_every_parameter_of_the_page_has_its_control(page: AppTest) -> None:
    drawn = {number_input.key: number_input for number_input in page.number_input}
    assert set(drawn) == {field.name.replace("_", "-") for field in fields(Sampling)}
    for number_input in drawn.values():
        assert (number_input.min, number_input.max, number_input.value) == (None, None, None)


def test_regenerating_replaces_the_last_answer(fake: FakeGateway, page: AppTest) -> None:
    ask(page, "one")
    fake.reply = say("Another answer")
    page.button(key="again").click().run()
    assert texts(page)[:2] == ["one", "Another answer"]
    assert len(page.chat_message) == 2
    assert [message["content"] for message in fake.wait_for(2).body["messages"]] == ["one"]


def test_a_new_chat_forgets_the_old_one_and_keeps_the_settings(fake: FakeGateway, page: AppTest) -> None:
    page.text_area(key="system").set_value("Be brief.")
    ask(page, "one")
    page.button(key="new-chat").click().run()
    assert not page.chat_message
    ask(page, "two")
    assert [message["content"] for message in fake.wait_for(2).body["messages"]] == ["Be brief.", "two"]


def test_a_failed_question_stays_and_can_be_sent_again(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = refuse(429, code="overloaded", retry_after=2)
    ask(page, "a question that took time to write")
    assert texts(page)[0] == "a question that took time to write"
    assert "The server is overloaded" in page.error[0].value
    assert page.button(key="again").label == "Try again"
    fake.reply = say("At last")
    page.button(key="again").click().run()
    assert not page.error
    assert texts(page)[:2] == ["a question that took time to write", "At last"]


def test_a_question_can_be_taken_back_into_the_input(page: AppTest) -> None:
    ask(page, "a typo")
    page.button(key="edit").click().run()
    assert not page.chat_message
    assert page.chat_input(key="input").proto.value == "a typo"


def test_an_answer_that_breaks_off_keeps_its_text(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = break_off("The first half", error="the engine failed")
    ask(page, "one")
    assert texts(page)[1] == "The first half"
    assert "was interrupted" in page.error[0].value


def test_a_missing_gateway_is_a_sentence_and_no_dead_end(fake: FakeGateway, settings: PageSettings) -> None:
    fake.stop()
    page = open_page()
    assert "cannot be reached" in page.error[0].value
    assert page.selectbox(key="model").disabled
    ask(page, "hello?")
    assert "cannot be reached" in page.error[0].value
    back = FakeGateway(fake.port)
    page.button(key="again").click().run()
    assert texts(page)[:2] == ["hello?", "Hello world!"]
    back.stop()


def test_a_wrong_key_is_a_sentence_and_the_key_is_nowhere(
    fake: FakeGateway, settings: PageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.key = "sk-right"
    monkeypatch.setenv(KEY_VARIABLE, "sk-wrong")
    page = open_page()
    ask(page, "hello?")
    assert KEY_VARIABLE in page.error[0].value
    assert "sk-wrong" not in str(page)


def test_a_wrong_address_is_a_sentence(fake: FakeGateway, settings: PageSettings) -> None:
    fake.is_something_else = True
    page = open_page()
    assert "does not speak the OpenAI API" in page.error[0].value
    ask(page, "hello?")
    assert "does not speak the OpenAI API" in page.error[0].value
    page.button(key="new-chat").click().run()
    fake.is_something_else = False
    page.button(key="look-again").click().run()
    assert not page.error
    assert page.selectbox(key="model").options == ["chat"]


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "nowhere")
    page = open_page()
    assert URL_VARIABLE in page.error[0].value
    assert not page.chat_input


def test_html_and_images_of_an_answer_are_text(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = say("<script>alert(1)</script> ![x](https://example.com/x.png)")
    ask(page, "<b>hello</b>")
    question, answer = page.chat_message[0].text[0], page.chat_message[1].markdown[0]
    assert question.value == "<b>hello</b>"
    assert answer.value == r"<script>alert(1)</script> !\[x](https://example.com/x.png)"
    assert not answer.allow_html


def test_the_conversation_can_be_downloaded(fake: FakeGateway, page: AppTest) -> None:
    assert page.get("download_button")[0].proto.disabled
    ask(page, "one")
    chat = page.session_state["chat"]
    assert not page.get("download_button")[0].proto.disabled
    assert json.loads(chat.conversation.to_json())["messages"][0]["content"] == "one"


PARIS = ("call_1", "get_weather", '{"city": "Paris"}')


def open_calls(page: AppTest) -> list[str]:
    """The labels of the fields that wait for a result."""
    return [area.label for area in page.text_area if area.label.startswith("Result of ")]


def test_reasoning_is_folded_above_the_answer(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = think_and_say("Paris is in *France*.", "法国")
    ask(page, "one")
    (reasoning,) = (expander for expander in page.chat_message[1].expander if expander.label == "Reasoning")
    assert not reasoning.proto.expanded
    assert reasoning.markdown[0].value == "Paris is in *France*."
    assert "法国" in texts(page)


def test_a_call_is_a_card_whose_result_goes_on_with_the_conversation(fake: FakeGateway, page: AppTest) -> None:
    now = ("call_2", "now", "{}")
    fake.reply = in_turn(think_and_call("Hm.", PARIS, now), think_and_call("", PARIS), say("18 °C"))
    ask(page, "one")
    assert [code.value for code in page.chat_message[1].code] == ['{\n  "city": "Paris"\n}', "{}"]
    assert open_calls(page) == ["Result of get_weather", "Result of now"]
    first, second = (area for area in page.text_area if area.label.startswith("Result of "))
    first.set_value("18 度")
    second.set_value('{"hour":12}')
    page.button(key="send-results").click().run()
    sent = fake.wait_for(2).body["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert [message["content"] for message in sent[2:]] == ["18 度", '{"hour":12}']
    assert sent[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    shown = [code.value for code in page.chat_message[1].code]
    assert shown[1] == "18 度"
    assert shown[3] == '{\n  "hour": 12\n}'
    (again,) = (area for area in page.text_area if area.label.startswith("Result of "))
    assert again.value == ""
    page.button(key="send-results").click().run()
    assert len(fake.wait_for(3).body["messages"]) == 6
    assert "18 °C" in texts(page)
    assert open_calls(page) == []
    assert len(page.chat_message) == 2


def test_a_failure_after_a_result_keeps_the_result(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = in_turn(think_and_call("", PARIS), refuse(429, code="overloaded"), say("At last"))
    ask(page, "one")
    page.button(key="send-results").click().run()
    assert "overloaded" in page.error[0].value
    page.button(key="again").click().run()
    assert len(fake.wait_for(3).body["messages"]) == 3
    assert "At last" in texts(page)
    page.button(key="again").click().run()
    assert len(fake.wait_for(4).body["messages"]) == 3


def test_a_question_may_follow_instead_of_a_result(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = in_turn(think_and_call("", PARIS), say("Well then"))
    ask(page, "one")
    ask(page, "two")
    assert [message["content"] for message in fake.wait_for(2).body["messages"]] == ["two"]
    assert open_calls(page) == []
    assert page.chat_message[1].code[0].value == '{\n  "city": "Paris"\n}'


def test_a_call_that_was_cut_is_shown_and_asks_for_nothing(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = think_and_call("", ("call_1", "get_weather", '{"city": "Par'), finish="length")
    ask(page, "one")
    assert page.chat_message[1].code[0].value == '{"city": "Par'
    assert open_calls(page) == []
    assert "truncated at the token limit" in texts(page)[-1]


def test_half_a_character_in_a_call_is_shown_as_it_is_written(fake: FakeGateway, page: AppTest) -> None:
    arguments = r'{"city": "\ud800"}'
    fake.reply = think_and_call("", ("1", "get_weather", arguments))
    ask(page, "Weather?")
    assert page.chat_message[1].code[0].value == arguments
    assert not page.exception


def test_a_name_that_looks_like_markdown_is_text(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = think_and_call("", ("1", "a*b*:red[c]", "{}"))
    ask(page, "one")
    assert open_calls(page) == [r"Result of a\*b\*\:red\[c\]"]


def test_an_answer_in_json_is_indented(fake: FakeGateway, page: AppTest) -> None:
    fake.reply = say('{"city":', '"北京"}')
    ask(page, "one")
    assert page.chat_message[1].code[0].value == '{\n  "city": "北京"\n}'
    assert page.session_state["chat"].conversation.turns[0].answer.text == '{"city":"北京"}'


def test_tools_and_a_schema_are_sent(fake: FakeGateway, page: AppTest) -> None:
    page.button(key="tools-example").click().run()
    page.text_area(key="json-schema").set_value('{"type": "object"}')
    page.selectbox(key="thinking").set_value("off")
    ask(page, "one")
    body = fake.wait_for(1).body
    assert body["tools"][0]["function"]["name"] == "get_weather"
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_without_them_nothing_of_it_is_sent(fake: FakeGateway, page: AppTest) -> None:
    ask(page, "one")
    assert fake.wait_for(1).body.keys() == {"model", "messages", "stream", "stream_options"}


def test_tools_that_are_no_json_are_said_and_not_left_out(fake: FakeGateway, page: AppTest) -> None:
    page.text_area(key="tools").set_value("[{]").run()
    assert "Tools is not JSON" in page.error[0].value.replace("\\", "")
    ask(page, "one")
    assert fake.received == []
    assert len(page.error) == 2
    page.text_area(key="tools").set_value("").run()
    page.button(key="again").click().run()
    assert texts(page)[:2] == ["one", "Hello world!"]
