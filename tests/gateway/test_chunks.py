from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta

from chat_gateway.answers.chunks import ChatChunks, CompletionChunks, Head
from tests.gateway.callers import events_of
from triton_chat.types import ChatEvent, PromptLogprob, TokenLogprob

HEAD = Head(id="id", created=5, model="名")
USAGE = CompletionUsage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
LOGPROB = TokenLogprob("x", -1.0, (120,))

texts = st.text(st.characters(codec="utf-8"), min_size=1)


def sent(chunks: ChatChunks | CompletionChunks, *events: tuple[int, ChatEvent]) -> list[Any]:
    return [found for index, event in events for found in events_of(chunks.encode(index, event).decode())]


@given(texts, st.booleans(), st.integers(0, 127))
def test_a_filled_template_is_what_the_type_says(text: str, include_usage: bool, index: int) -> None:
    usage = {"usage": None} if include_usage else {}
    choice = Choice(index=index, delta=ChoiceDelta(content=text), finish_reason=None, logprobs=None)
    chunk = ChatCompletionChunk(**HEAD, object="chat.completion.chunk", choices=[choice], **usage)
    _, found = sent(ChatChunks(HEAD, include_usage=include_usage), (index, ChatEvent(text)))
    assert found == chunk.model_dump(mode="json", exclude_unset=True)

    part = CompletionChoice.model_construct(index=index, text=text, finish_reason=None, logprobs=None)
    completion = Completion.model_construct(**HEAD, object="text_completion", choices=[part], **usage)
    (found,) = sent(CompletionChunks(HEAD, include_usage=include_usage), (index, ChatEvent(text)))
    assert found == completion.model_dump(mode="json", exclude_unset=True, warnings=False)


def test_chat_begins_with_the_role_and_ends_with_the_reason_for_each_choice() -> None:
    events = [(1, ChatEvent("a")), (0, ChatEvent("b", "length")), (1, ChatEvent("", "stop"))]
    found = [event["choices"][0] for event in sent(ChatChunks(HEAD, include_usage=False), *events)]
    assert [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in found] == [
        (1, {"role": "assistant", "content": "", "refusal": None}, None),
        (1, {"content": "a"}, None),
        (0, {"role": "assistant", "content": "", "refusal": None}, None),
        (0, {"content": "b"}, None),
        (0, {}, "length"),
        (1, {}, "stop"),
    ]


def test_completions_end_with_the_last_text() -> None:
    events = [(0, ChatEvent("a")), (0, ChatEvent("")), (0, ChatEvent("b", "stop"))]
    found = [event["choices"][0] for event in sent(CompletionChunks(HEAD, include_usage=False), *events)]
    assert [(choice["text"], choice["finish_reason"]) for choice in found] == [("a", None), ("b", "stop")]


def test_logprobs_go_with_their_text() -> None:
    event = (0, ChatEvent("x", logprobs=(LOGPROB,)))
    _, chat = sent(ChatChunks(HEAD, include_usage=False), event)
    assert chat["choices"][0]["delta"] == {"content": "x"}
    assert [entry["token"] for entry in chat["choices"][0]["logprobs"]["content"]] == ["x"]
    first, second = sent(CompletionChunks(HEAD, include_usage=False), event, event)
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in (first, second)] == [[0], [1]]


def test_token_ids_go_with_their_text_and_those_of_the_prompt_come_first() -> None:
    events = [
        (0, ChatEvent("", prompt_token_ids=(1, 2))),
        (0, ChatEvent("x")),
        (0, ChatEvent("y", token_ids=(5, 6))),
        (0, ChatEvent("", "stop", token_ids=(7,))),
    ]
    first, x, y, last, end = sent(ChatChunks(HEAD, include_usage=False), *events)
    assert first["prompt_token_ids"] == [1, 2]
    assert [chunk["choices"][0].get("token_ids") for chunk in (first, x, y, last, end)] == [
        None,
        None,
        [5, 6],
        [7],
        None,
    ]
    assert [chunk["choices"][0]["delta"].get("content") for chunk in (first, x, y, last)] == ["", "x", "y", ""]

    first, x, y, last = (chunk["choices"][0] for chunk in sent(CompletionChunks(HEAD, include_usage=False), *events))
    assert first["prompt_token_ids"] == [1, 2]
    assert [choice.get("token_ids") for choice in (first, x, y, last)] == [None, None, [5, 6], [7]]
    assert (y["text"], last["finish_reason"]) == ("y", "stop")


def test_an_echoed_prompt_may_come_in_chunks() -> None:
    entries = [PromptLogprob("a", None, (97,), 5), PromptLogprob("b", -1.0, (98,), 6, 1)]
    events = [
        (0, ChatEvent("ab", prompt_logprobs=(entries[0],))),
        (0, ChatEvent("", prompt_logprobs=(entries[1],))),
        (0, ChatEvent("x", "stop", logprobs=(LOGPROB,))),
    ]
    found = [chunk["choices"][0] for chunk in sent(CompletionChunks(HEAD, include_usage=False, logprobs=0), *events)]
    assert [choice["text"] for choice in found] == ["ab", "", "x"]
    assert [choice["logprobs"]["tokens"] for choice in found] == [["a"], ["b"], ["x"]]
    assert [choice["logprobs"]["token_logprobs"] for choice in found] == [[None], [-1.0], [-1.0]]
    assert [choice["logprobs"]["text_offset"] for choice in found] == [[0], [1], [2]]


@pytest.mark.parametrize("kind", [ChatChunks, CompletionChunks])
def test_usage_comes_alone_and_last(kind: type[ChatChunks | CompletionChunks]) -> None:
    chunks = kind(HEAD, include_usage=True)
    assert all(event["usage"] is None for event in sent(chunks, (0, ChatEvent("a", "stop"))))
    (last,) = events_of(chunks.usage(USAGE).decode())
    assert (last["choices"], last["usage"]) == ([], USAGE.model_dump(exclude_unset=True))


@pytest.mark.parametrize("kind", [ChatChunks, CompletionChunks])
def test_no_usage_unless_asked_for(kind: type[ChatChunks | CompletionChunks]) -> None:
    chunks = kind(HEAD, include_usage=False)
    assert not any("usage" in event for event in sent(chunks, (0, ChatEvent("a", "stop"))))
    assert chunks.usage(USAGE) == b""


@pytest.mark.parametrize("kind", [ChatChunks, CompletionChunks])
def test_usage_so_far_in_each_chunk(kind: type[ChatChunks | CompletionChunks]) -> None:
    counts = iter(range(1, 100))

    def so_far() -> CompletionUsage:
        count = next(counts)
        return CompletionUsage(prompt_tokens=7, completion_tokens=count, total_tokens=7 + count)

    chunks = kind(HEAD, include_usage=True, usage_so_far=so_far)
    events = [(0, ChatEvent("a")), (0, ChatEvent("b")), (0, ChatEvent("c", "stop"))]
    found = sent(chunks, *events)
    assert [event["usage"]["completion_tokens"] for event in found] == list(range(1, len(found) + 1))
    texts = [c["text"] if "text" in (c := event["choices"][0]) else c["delta"].get("content", "") for event in found]
    assert "".join(texts) == "abc"
    (last,) = events_of(chunks.usage(USAGE).decode())
    assert (last["choices"], last["usage"]) == ([], USAGE.model_dump(exclude_unset=True))
