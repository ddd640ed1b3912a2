from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta

from chat_gateway.answers.chunks import ChatChunks, CompletionChunks, Head
from chat_gateway.answers.messages import Style
from tests.gateway.callers import events_of
from triton_chat.types import ChatEvent, PromptLogprob, TokenLogprob, ToolCallDelta

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


ROLE = {"role": "assistant", "content": "", "refusal": None}
SILENT_ROLE = {"role": "assistant", "content": None, "refusal": None}


def deltas(*events: ChatEvent, style: Style | None = None) -> list[dict[str, Any]]:
    """What the chunks of one choice say, up to its finish reason."""
    chunks = ChatChunks(HEAD, include_usage=False, style=style or Style())
    choices = [chunk["choices"][0] for chunk in sent(chunks, *((0, event) for event in events))]
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    return [choice["delta"] or {"finish_reason": choice["finish_reason"]} for choice in choices]


def called(*parts: ToolCallDelta, finish_reason: str = "") -> ChatEvent:
    return ChatEvent("", finish_reason, tool_calls=parts)


def opened(index: int, call_id: str, name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": ""}
    return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}


def argued(index: int, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


class TestCalls:
    def test_as_openai_documents_them(self) -> None:
        """Source: OpenAI's guide "Function calling", "Streaming"."""
        found = deltas(
            called(ToolCallDelta(0, "call_DdmO9pD3xa9XTPNJ32zg2hcA", "get_weather")),
            *(called(ToolCallDelta(0, arguments=part)) for part in ('{"', "location", '":"', "Paris", '"}')),
            called(ToolCallDelta(1, "call_2", "get_time")),
            called(ToolCallDelta(1, arguments="{}")),
            ChatEvent("", "tool_calls"),
        )
        assert found == [
            SILENT_ROLE,
            opened(0, "call_DdmO9pD3xa9XTPNJ32zg2hcA", "get_weather"),
            *(argued(0, part) for part in ('{"', "location", '":"', "Paris", '"}')),
            opened(1, "call_2", "get_time"),
            argued(1, "{}"),
            {"finish_reason": "tool_calls"},
        ]

    def test_what_came_together_is_told_apart(self) -> None:
        """Under load an event holds what several tokens made."""
        event = ChatEvent(
            "Wait.",
            "tool_calls",
            reasoning="hm",
            tool_calls=(
                ToolCallDelta(0, "a", "f", '{"x":'),
                ToolCallDelta(0, arguments="1"),
                ToolCallDelta(0, arguments="}"),
                ToolCallDelta(1, "b", "g"),
                ToolCallDelta(1, arguments="{}"),
            ),
        )
        assert deltas(event) == [
            ROLE,
            {"reasoning": "hm", "reasoning_content": "hm"},
            {"content": "Wait."},
            opened(0, "a", "f"),
            argued(0, '{"x":1}'),
            opened(1, "b", "g"),
            argued(1, "{}"),
            {"finish_reason": "tool_calls"},
        ]

    @pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
    def test_the_reason_is_the_engines(self, reason: str) -> None:
        assert deltas(called(ToolCallDelta(0, "a", "f"), finish_reason=reason))[-1] == {"finish_reason": reason}

    @given(st.lists(texts, min_size=1, max_size=4), st.integers(0, 127))
    def test_arguments_are_what_they_were(self, parts: list[str], index: int) -> None:
        found = deltas(
            called(ToolCallDelta(index, "a", "f")), *(called(ToolCallDelta(index, arguments=part)) for part in parts)
        )
        assert found == [SILENT_ROLE, opened(index, "a", "f"), *(argued(index, part) for part in parts)]

    def test_each_choice_has_its_own(self) -> None:
        chunks = ChatChunks(HEAD, include_usage=False)
        events = [(choice, called(ToolCallDelta(0, f"id {choice}", "f", f"{choice}"))) for choice in (1, 0)]
        found = [chunk["choices"][0] for chunk in sent(chunks, *events)]
        assert [(choice["index"], choice["delta"]) for choice in found] == [
            (1, SILENT_ROLE), (1, opened(0, "id 1", "f")), (1, argued(0, "1")),
            (0, SILENT_ROLE), (0, opened(0, "id 0", "f")), (0, argued(0, "0")),
        ]  # fmt: skip

    def test_in_the_older_form(self) -> None:
        found = deltas(
            called(ToolCallDelta(0, "a", "f", "{"), ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "b", "g", "{}")),
            ChatEvent("", "tool_calls"),
            style=Style(function_call=True),
        )
        assert found == [
            SILENT_ROLE,
            {"function_call": {"name": "f", "arguments": ""}},
            {"function_call": {"arguments": "{}"}},
            {"finish_reason": "function_call"},
        ]


class TestReasoning:
    EVENTS = (ChatEvent("", reasoning="h"), ChatEvent("", reasoning="m"), ChatEvent("x"), ChatEvent("", "stop"))

    def test_under_both_names(self) -> None:
        assert deltas(*self.EVENTS) == [
            SILENT_ROLE,
            *({"reasoning": part, "reasoning_content": part} for part in "hm"),
            {"content": "x"},
            {"finish_reason": "stop"},
        ]

    def test_not_where_it_is_not_wanted(self) -> None:
        found = deltas(*self.EVENTS, style=Style(reasoning=False))
        assert found == [ROLE, {"content": "x"}, {"finish_reason": "stop"}]

    @given(texts)
    def test_it_is_what_it_was(self, text: str) -> None:
        assert deltas(ChatEvent("", reasoning=text))[1] == {"reasoning": text, "reasoning_content": text}

    def test_logprobs_go_with_the_content(self) -> None:
        event = ChatEvent("x", reasoning="hm", logprobs=(LOGPROB,), tool_calls=(ToolCallDelta(0, "a", "f"),))
        found = sent(ChatChunks(HEAD, include_usage=False), (0, event))
        assert [chunk["choices"][0]["delta"].get("content") for chunk in found if chunk["choices"][0]["logprobs"]] == [
            "x"
        ]
