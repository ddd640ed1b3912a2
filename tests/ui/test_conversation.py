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


def grown(*chunks: tuple[str, float], tokens: int | None) -> Answer:
    answer = Answer(completion_tokens=tokens)
    for text, now_s in chunks:
        answer = answer.grown(text, now_s, "")
    return answer


@pytest.mark.parametrize(
    ("chunks", "tokens", "rate"),
    [
        ([("ab", 0.5), ("ab" * 40, 2.5)], 41, 20.0),
        ([("ab" * 21, 0.5), ("ab" * 20, 2.5)], 41, 10.0),
        ([("ab" * 10, 0.5), ("ab" * 11, 0.501), ("ab" * 20, 2.501)], 41, 10.0),
        ([("", 0.1), ("ab", 0.5), ("ab" * 40, 2.5), ("", 2.5)], 41, 20.0),
        ([("ab" * 41, 0.5), ("", 0.6)], 41, None),
        ([("ab", 0.5), ("ab" * 40, 0.504)], 41, None),
        ([("ab", 0.5), ("ab" * 40, 2.5)], None, None),
        ([("", 0.5)], 0, None),
        ([], 41, None),
    ],
)
def test_the_rate_leaves_out_what_came_first(
    chunks: list[tuple[str, float]], tokens: int | None, rate: float | None
) -> None:
    assert grown(*chunks, tokens=tokens).tokens_per_s == pytest.approx(rate)


def test_the_first_token_is_the_first_text() -> None:
    answer = grown(("", 0.1), ("a", 0.5), ("b", 0.505), ("c", 2.0), tokens=3)
    assert (answer.first_token_s, answer.begun_s, answer.duration_s, answer.text) == (0.5, 0.505, 2.0, "abc")


def test_only_what_is_set_is_sent_and_vllms_names_go_beside_the_body() -> None:
    assert Sampling().arguments() == {}
    assert Sampling(temperature=0.0, seed=0, top_k=5).arguments() == {
        "temperature": 0.0,
        "seed": 0,
        "extra_body": {"top_k": 5},
    }
