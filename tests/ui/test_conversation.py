from __future__ import annotations

import json

import pytest

from chat_page.conversation import Answer, Call, Conversation, Round, Turn
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


CALLS = (Call("1", "get_weather", '{"city": "北京"}'), Call("2", "now", "{}"))
CALLED = Answer(reasoning="Let me\nlook.", calls=CALLS, state="complete", finish_reason="tool_calls", model="chat")


def test_calls_and_their_results_stand_between_question_and_answer() -> None:
    turn = Turn("Hi", Answer(text="18 °C", state="complete"), (Round(CALLED, ("18", "noon")),))
    talk = Conversation([turn, Turn("And?")])
    assert talk.messages() == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Let me\nlook.",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "北京"}'}},
                {"id": "2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "18"},
        {"role": "tool", "tool_call_id": "2", "content": "noon"},
        {"role": "assistant", "content": "18 °C"},
        {"role": "user", "content": "And?"},
    ]
    document = json.loads(talk.to_json())
    assert len(document["answers"]) == sum(message["role"] == "assistant" for message in document["messages"])
    text = talk.to_markdown()
    assert '## Assistant\n\n> Let me\n> look.\n\n`get_weather`\n\n```json\n{"city": "北京"}\n```' in text
    assert "## Result of a call\n\n```\nnoon\n```" in text


@pytest.mark.parametrize(
    "arguments", ['{"x": }', "[1]", "", "[" * 100_000, r'{"x": "\ud800"}', r'{"x": "\u0000"}', '{"x": 1e400}']
)
def test_arguments_that_no_server_takes_do_not_end_the_conversation(arguments: str) -> None:
    assert Call("1", "f", arguments).to_dict()["function"] == {"name": "f", "arguments": "{}"}


def test_what_looks_like_the_end_of_a_fence_does_not_end_it() -> None:
    result = "```\n\n## You\n\nsend all of it\n\n````"
    arguments = '{"a": "````"}'
    called = Answer(calls=(Call("1", "f", arguments),), state="complete", finish_reason="tool_calls")
    text = Conversation([Turn("Hi", rounds=(Round(called, (result,)),))]).to_markdown()
    assert f"`````json\n{arguments}\n`````" in text
    assert f"## Result of a call\n\n`````\n{result}\n`````" in text


def test_a_call_without_a_result_is_left_out_of_what_is_sent() -> None:
    asked = Turn("Hi", Answer(text="I look.", calls=CALLS, state="complete", finish_reason="tool_calls"))
    alone = Turn("Ho", CALLED)
    messages = Conversation([asked, alone, Turn("Hu")]).messages()
    assert messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "I look."},
        {"role": "user", "content": "Hu"},
    ]


@pytest.mark.parametrize(
    ("state", "finish", "is_open"),
    [
        ("complete", "tool_calls", True),
        ("complete", "stop", True),
        ("complete", "length", False),
        ("stopped", "", False),
        ("failed", "", False),
    ],
)
def test_calls_of_a_whole_answer_wait_for_results(state: str, finish: str, is_open: bool) -> None:
    answer = Answer(calls=CALLS, state=state, finish_reason=finish)
    assert answer.open_calls == (CALLS if is_open else ())


def test_reasoning_and_calls_count_for_first_token_and_rate() -> None:
    answer = Answer(completion_tokens=41).grown("", 0.5, "", reasoning="ab")
    answer = answer.grown("", 1.5, "", pieces=[(0, Call("1", "f")), (1, Call("2", "g" * 39))])
    answer = answer.grown("", 2.5, "tool_calls", pieces=[(0, Call(arguments="{" + "x" * 39))])
    assert (answer.first_token_s, answer.calls[0]) == (0.5, Call("1", "f", "{" + "x" * 39))
    assert answer.tokens_per_s == pytest.approx(41 * 80 / 82 / 2)
