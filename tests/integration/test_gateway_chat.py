"""`/v1/chat/completions` by the `openai` package: each field that is honoured, in one piece and streamed."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from local.triton import LocalTriton
from tests.integration.calls import chat, settled
from tests.integration.openai_calls import TWO_WAYS, WAYS, Answer, Asker, Choice, Way, whole
from triton_chat import ChatClient
from triton_chat.types import ChatResult

HELLO: Any = chat("Who are you?")
STORY: Any = chat("Tell me something about the moon, and about 月亮 too.")
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
WILD: dict[str, Any] = {"temperature": 2.0, "seed": 7, "max_tokens": 12, "ignore_eos": True}
"""So random that whatever narrows the choice of tokens shows in the text."""


def extra(**fields: Any) -> dict[str, Any]:
    """Fields as the package takes them: those it does not know go into `extra_body`."""
    known = {name: value for name, value in fields.items() if name not in EXTENSIONS}
    return {**known, "extra_body": {name: value for name, value in fields.items() if name in EXTENSIONS}}


EXTENSIONS = {
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "add_generation_prompt",
}


def assert_same(answer: Answer, expected: ChatResult) -> None:
    assert (answer.only.text, answer.only.finish_reason) == (expected.text, expected.finish_reason)
    assert answer.tokens == (expected.num_input_tokens, expected.num_output_tokens)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", ["Who are you?", "你是谁？"])
def test_the_answer_is_the_engines(ask: Asker, engine: ChatClient, way: Way, question: str) -> None:
    answer = ask("chat", way, messages=chat(question), temperature=0)
    assert_same(answer, engine.generate(chat(question), temperature=0))
    assert "tiny-chat" in answer.only.text
    assert answer.only.finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "chat"


# Each of them changes what WILD alone gives.
FIELDS: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": 5},
    "temperature": {"temperature": 0},
    "top_p": {"top_p": 0.01},
    "seed": {"seed": 8},
    "presence_penalty": {"presence_penalty": 2, "max_tokens": 80},
    "frequency_penalty": {"frequency_penalty": 2, "max_tokens": 80},
    "top_k": {"top_k": 2},
    "min_p": {"min_p": 0.5},
    "repetition_penalty": {"repetition_penalty": 0.2},
}


@pytest.mark.parametrize("way", TWO_WAYS)
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_sampling(ask: Asker, engine: ChatClient, way: Way, name: str) -> None:
    given = {**WILD, **FIELDS[name]}
    without = {key: value for key, value in given.items() if key != name} | {
        key: WILD[key] for key in WILD if key == name
    }
    answer = ask("chat", way, messages=STORY, **extra(**given))
    assert_same(answer, engine.generate(STORY, **given))
    assert answer.only.text != engine.generate(STORY, **without).text


@pytest.mark.parametrize("way", TWO_WAYS)
def test_logit_bias(ask: Asker, engine: ChatClient, way: Way) -> None:
    (wanted,) = engine.tokenize(text=" the").token_ids
    answer = ask("chat", way, messages=HELLO, max_tokens=3, temperature=0, logit_bias={str(wanted): 100})
    assert answer.only.text == " the the the"


@pytest.mark.parametrize("way", TWO_WAYS)
def test_max_completion_tokens(ask: Asker, way: Way) -> None:
    answer = ask("chat", way, messages=HELLO, max_completion_tokens=4)
    assert (answer.only.finish_reason, answer.tokens[1]) == ("length", 4)


@pytest.mark.parametrize("way", TWO_WAYS)
@pytest.mark.parametrize("as_list", [False, True])
def test_stop(ask: Asker, engine: ChatClient, way: Way, as_list: bool) -> None:
    text = engine.generate(HELLO, temperature=0).text
    stop = text[20:25]
    answer = ask("chat", way, messages=HELLO, temperature=0, stop=["§", stop] if as_list else stop)
    assert (answer.only.text, answer.only.finish_reason) == (text.partition(stop)[0], "stop")


@pytest.mark.parametrize("way", TWO_WAYS)
def test_stop_token_ids(ask: Asker, engine: ChatClient, way: Way) -> None:
    text = engine.generate(HELLO, temperature=0).text
    third = engine.tokenize(text=text).token_ids[2]
    fields = {"messages": HELLO, "temperature": 0, "stop_token_ids": [third]}
    answer = ask("chat", way, **extra(**fields))
    assert_same(answer, engine.generate(HELLO, temperature=0, stop_token_ids=[third]))
    assert answer.tokens[1] <= 3


@pytest.mark.parametrize("way", TWO_WAYS)
def test_min_tokens_and_ignore_eos(ask: Asker, engine: ChatClient, way: Way) -> None:
    (end,) = engine.tokenize(text="<|end|>").token_ids
    at_once = {"messages": HELLO, "temperature": 0, "max_tokens": 30, "logit_bias": {str(end): 100}}
    assert ask("chat", way, **at_once).only == Choice("", "stop")
    later = ask("chat", way, **extra(**at_once, min_tokens=6))
    assert (later.only.finish_reason, later.tokens[1]) == ("stop", 7)
    never = ask("chat", way, **extra(**at_once, ignore_eos=True))
    assert (never.only.finish_reason, never.tokens[1]) == ("length", 30)


@pytest.mark.parametrize("way", TWO_WAYS)
def test_add_generation_prompt(ask: Asker, engine: ChatClient, way: Way) -> None:
    answer = ask("chat", way, **extra(messages=HELLO, add_generation_prompt=False, **GREEDY))
    expected = engine.generate(HELLO, add_generation_prompt=False, **GREEDY)
    assert_same(answer, expected)
    assert expected.num_input_tokens < engine.generate(HELLO, **GREEDY).num_input_tokens


@pytest.mark.parametrize("way", TWO_WAYS)
def test_turns_parts_and_developer(ask: Asker, engine: ChatClient, way: Way) -> None:
    plain = [
        {"role": "system", "content": "Be brief."},
        *chat("What is Triton?"),
        {"role": "assistant", "content": "A server."},
        *chat("Why?\n为什么？"),
    ]
    parts = [{"type": "text", "text": "Why?"}, {"type": "text", "text": "为什么？"}]
    given = [{"role": "developer", "content": "Be brief."}, *plain[1:3], {"role": "user", "content": parts}]
    assert_same(ask("chat", way, messages=given, **GREEDY), engine.generate(plain, **GREEDY))


def test_an_answer_can_be_sent_back(client: OpenAI) -> None:
    first = client.chat.completions.create(model="chat", messages=HELLO, temperature=0)
    turns: Any = [*HELLO, first.choices[0].message, *chat("Why?")]
    second = client.chat.completions.create(model="chat", messages=turns, temperature=0)
    assert second.choices[0].message.content


@pytest.mark.parametrize("way", TWO_WAYS)
def test_fields_that_change_nothing(ask: Asker, engine: ChatClient, way: Way) -> None:
    answer = ask(
        "chat",
        way,
        messages=HELLO,
        user="somebody",
        safety_identifier="somebody",
        prompt_cache_key="key",
        response_format={"type": "text"},
        service_tier="auto",
        store=False,
        tool_choice="none",
        tools=[],
        modalities=["text"],
        logprobs=False,
        n=1,
        **GREEDY,
    )
    assert_same(answer, engine.generate(HELLO, **GREEDY))


# Several answers.


@pytest.mark.parametrize("way", WAYS)
def test_n_answers_have_seeds_of_their_own_and_an_order(ask: Asker, engine: ChatClient, way: Way) -> None:
    fields = {**WILD, "max_tokens": 24, "seed": 40}
    answer = ask("chat", way, messages=STORY, n=4, **extra(**fields))
    alone = [engine.generate(STORY, **{**fields, "seed": fields["seed"] + choice}) for choice in range(4)]
    assert answer.texts == [result.text for result in alone]
    assert len(set(answer.texts)) == 4
    assert answer.tokens == (alone[0].num_input_tokens, 4 * 24)


def test_n_answers_without_a_seed_differ(ask: Asker) -> None:
    answer = ask("chat", messages=STORY, n=8, temperature=2, max_tokens=12)
    assert len(set(answer.texts)) > 1


@pytest.mark.parametrize("way", TWO_WAYS)
def test_n_answers_share_the_prompt_through_the_prefix_cache(
    ask: Asker, triton: LocalTriton, engine: ChatClient, way: Way
) -> None:
    messages = chat(f"A prompt that nobody has sent before, {way}. " + "It goes on and on. " * 20)
    before = settled(triton)
    first = ask("chat", way, messages=messages, n=5, max_tokens=2, seed=1)
    grown = settled(triton) - before
    shared = grown("triton_chat_prefix_cache_hit_tokens_total") / 4
    assert grown("triton_chat_requests_total") == 5
    assert first.tokens[0] * 0.7 < shared < first.tokens[0]
    again = ask("chat", way, messages=messages, n=2, max_tokens=2, seed=1)
    assert first.cached_tokens < again.cached_tokens == shared


# Logprobs.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("question", "top"), [("Who are you?", None), ("Who are you?", 0), ("你是谁？", 5)])
def test_logprobs_are_the_engines(ask: Asker, engine: ChatClient, way: Way, top: int | None, question: str) -> None:
    asked = {} if top is None else {"top_logprobs": top}
    answer = ask("chat", way, messages=chat(question), logprobs=True, **asked, **GREEDY)
    expected = engine.generate(chat(question), logprobs=top or 0, **GREEDY)
    assert_same(answer, expected)
    assert len(answer.only.logprobs) == expected.num_output_tokens
    for got, wanted in zip(answer.only.logprobs, expected.logprobs, strict=True):
        assert (got.token, tuple(got.bytes), got.logprob) == (wanted.token, wanted.bytes, pytest.approx(wanted.logprob))
        assert len(got.top_logprobs) == (top or 0)
        for got_top, wanted_top in zip(got.top_logprobs, wanted.top_logprobs, strict=True):
            assert (got_top.token, tuple(got_top.bytes)) == (wanted_top.token, wanted_top.bytes)
            assert got_top.logprob == pytest.approx(wanted_top.logprob)
    spoken = b"".join(bytes(entry.bytes) for entry in answer.only.logprobs)
    assert spoken.decode(errors="ignore").startswith(answer.only.text.rstrip("\ufffd"))


def test_no_logprobs_unasked(client: OpenAI) -> None:
    assert client.chat.completions.create(model="chat", messages=HELLO).choices[0].logprobs is None


# The stream.


def test_role_then_deltas_then_the_reason_then_the_usage(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="chat", messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    first, *deltas, last, usage = chunks
    delta = first.choices[0].delta
    assert (delta.role, delta.content) == ("assistant", "")
    for chunk in deltas:
        (choice,) = chunk.choices
        assert (choice.delta.role, choice.finish_reason, bool(choice.delta.content)) == (None, None, True)
    assert len(deltas) > 1
    assert (last.choices[0].delta.content, last.choices[0].finish_reason) == (None, whole(chunks).only.finish_reason)
    assert (usage.choices, all(chunk.usage is None for chunk in chunks[:-1])) == ([], True)
    assert usage.usage
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1


def test_no_usage_unasked(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="chat", messages=HELLO, stream=True, **GREEDY))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_the_packages_own_stream_helper(client: OpenAI, engine: ChatClient) -> None:
    with client.chat.completions.stream(model="chat", messages=HELLO, temperature=0) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == engine.generate(HELLO, temperature=0).text


def test_a_stream_comes_in_pieces(client: OpenAI) -> None:
    """The first is there long before the last is made."""
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 300, "extra_body": {"ignore_eos": True}}
    chunks = list(client.chat.completions.create(model="chat", messages=HELLO, stream=True, **fields))
    assert len(chunks) > 20
