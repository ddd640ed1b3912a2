from __future__ import annotations

import json

import pytest

from chat_page.conversation import Answer, Conversation, Turn
from chat_page.options import Sampling


def conversation(*turns: tuple[str, str]) -> Conversation:
    return Conversation([Turn(question, Answer(text=text, state="complete", model="chat")) for question, text in turns])


def test_messages_are_what_was_said_in_order() -> None:
    assert conversation(("Hi", "Hello"), ("你好", "")).messages("Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "你好"},
    ]


def test_a_question_without_an_answer_is_left_out_once_another_is_asked() -> None:
    assert [message["content"] for message in conversation(("lost", ""), ("Hi", "Hello")).messages()] == ["Hi", "Hello"]


@pytest.mark.parametrize("system", ["", "  \n"])
def test_an_empty_system_prompt_is_no_message(system: str) -> None:
    assert conversation(("Hi", "")).messages(system) == [{"role": "user", "content": "Hi"}]


def test_json_can_be_sent_again_and_keeps_chinese_readable() -> None:
    talk = conversation(("你好", "您好"))
    text = talk.to_json("系统")
    document = json.loads(text)
    assert document["messages"] == talk.messages("系统")
    assert document["answers"] == [{"model": "chat", "state": "complete"}]
    assert "您好" in text


def test_markdown_is_for_reading() -> None:
    assert (
        conversation(("Hi", "**Hello**")).to_markdown()
        == "# Conversation\n\n## You\n\nHi\n\n## Assistant\n\n**Hello**\n"
    )


@pytest.mark.parametrize(
    ("first", "duration", "tokens", "rate"),
    [(0.5, 2.5, 41, 20.0), (None, 2.5, 41, None), (0.5, 0.5, 41, None), (0.5, 2.5, 1, None), (0.5, 2.5, None, None)],
)
def test_the_rate_leaves_out_the_first_token(
    first: float | None, duration: float | None, tokens: int | None, rate: float | None
) -> None:
    answer = Answer(first_token_s=first, duration_s=duration, completion_tokens=tokens)
    assert answer.tokens_per_s == rate


def test_only_what_is_set_is_sent_and_vllms_names_go_beside_the_body() -> None:
    assert Sampling().arguments() == {}
    assert Sampling(temperature=0.0, seed=0, top_k=5).arguments() == {
        "temperature": 0.0,
        "seed": 0,
        "extra_body": {"top_k": 5},
    }
