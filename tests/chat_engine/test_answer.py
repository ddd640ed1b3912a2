"""Answers that are taken apart, token by token: what belongs to what, stop strings, counts, and how they end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from chat_engine.answering.guide import Guide
from chat_engine.answering.telling import Logprobs
from chat_engine.native.running import Running
from chat_engine.native.sampler import Sampled
from chat_engine.native.token_rules import TokenRules
from chat_engine.request import Alternative, ChatRequest, FinishReason, Reply, SamplingParams, TokenLogprobs
from chat_engine.text.answer import AnswerText, CallOpening, Said
from chat_engine.text.answer_formats import known_formats
from chat_engine.text.detokenizer import TextStream, TokenNames, text_of
from tests.chat_engine.answers import (
    HERMES,
    HERMES_NOW,
    LLAMA,
    ONE,
    TOOLS,
    UNUSUAL,
    WELL_FORMED,
    Read,
    Recorded,
    joined,
    reply_of,
    wanted,
)
from tests.chat_engine.builders import EOS, Inbox, byte_level_tokenizer, examples

MARKERS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]",
    "<|tool_call|>", "<|/tool_call|>", "<|python_tag|>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
]  # fmt: skip


def tokenizer_with(markers: str) -> Tokenizer:
    """One token per byte, and the markers as special tokens, as ordinary added ones, or not at all."""
    tokenizer = byte_level_tokenizer(MARKERS if markers == "special" else ())
    if markers == "added":
        tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    tokenizer.add_special_tokens(["<|hidden|>"])
    return tokenizer


TOKENIZERS = {markers: tokenizer_with(markers) for markers in ("special", "added", "bytes")}
PLAIN = TOKENIZERS["bytes"]
HERMES_REPLY = Reply(known_formats()["hermes"], TOOLS)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def merged(said: list[Said]) -> Said:
    return Said(
        "".join(one.text for one in said),
        "".join(one.reasoning for one in said),
        tuple(call for one in said for call in one.calls),
        tuple(entry for one in said for entry in one.logprobs),
    )


def numbered(count: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(Alternative("", b"", float(-place), place), ()) for place in range(count)]


@pytest.mark.parametrize("markers", TOKENIZERS)
@pytest.mark.parametrize("recorded", [*WELL_FORMED, *UNUSUAL], ids=str)
def test_through_a_tokenizer(recorded: Recorded, markers: str) -> None:
    """Each token on its own, single bytes among them; markers may be special tokens, which are hidden otherwise."""
    tokenizer = TOKENIZERS[markers]
    if markers == "special" and not recorded.tools:
        pytest.skip("hidden, as all special tokens are that are no markers")
    answer = AnswerText(tokenizer, reply_of(recorded), tuple(ids_of(tokenizer, recorded.prefix or "Hi")))
    said = merged([*(answer.push(token_id) for token_id in ids_of(tokenizer, recorded.text)), answer.flush()])
    assert Read(said.text, said.reasoning, joined(said.calls)) == wanted(recorded)
    assert answer.num_calls == len(recorded.calls)


@given(data=st.data())
@examples(150)
def test_without_markers_it_is_the_stream_of_text(data: st.DataObject) -> None:
    """Random ids, stop strings, bounds: the text, the stop and the tokens with log-probabilities are those of today."""
    ids = data.draw(st.lists(st.integers(0, PLAIN.get_vocab_size() - 1), max_size=30))
    bad = {ord("<"), ord("[")}
    ids = [i for i in ids if not set(text_of(PLAIN, [i]).encode()) & bad or i < 3]
    stop = tuple(data.draw(st.lists(st.sampled_from(["he", "ll", " wo", "</s>", "a</s>", "in"]), max_size=2)))
    free = data.draw(st.integers(0, 6))
    stream, answer = TextStream(PLAIN, (5,), stop), AnswerText(PLAIN, Reply(known_formats()["think"]), (5,), stop)
    texts, said, places = "", [], []
    for place, (token_id, entry) in enumerate(zip(ids, numbered(len(ids)), strict=True)):
        texts += stream.push(token_id, place >= free)
        said.append(answer.push(token_id, place >= free, entry))
        places.append(place)
        if stream.stopped or answer.stopped:
            break
    if not (stream.stopped or answer.stopped):
        texts += stream.flush()
        said.append(answer.flush())
    assert merged(said).text == texts
    assert answer.stopped == stream.stopped
    assert [entry.chosen.token_id for entry in merged(said).logprobs] == places


def entries(text: str, reply: Reply = HERMES_REPLY, markers: str = "added") -> tuple[str, int, int]:
    """The text of the tokens whose log-probabilities are given, the count of reasoning tokens, and of all."""
    tokenizer = TOKENIZERS[markers]
    ids = ids_of(tokenizer, text)
    answer = AnswerText(tokenizer, reply, (5,))
    said = [answer.push(i, True, entry) for i, entry in zip(ids, numbered(len(ids)), strict=True)]
    said.append(answer.flush())
    given = [ids[entry.chosen.token_id] for entry in merged(said).logprobs]
    return text_of(tokenizer, given), answer.num_reasoning, len(ids)


def test_log_probabilities_belong_to_the_content() -> None:
    assert entries("Hey 你好 \n")[0] == "Hey 你好 \n"
    assert entries(f"<think>\nhm\n</think>\n\n好的\n{HERMES}\n{HERMES_NOW}\n")[0] == "好的"
    assert entries(f"{HERMES}\n")[0] == ""
    assert entries("a <tool_call>oh</tool_call>")[0] == "a <tool_call>oh</tool_call>"
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["so.\n<tool_call>", "</think>\n\nOk"])
    ids = [*ids_of(tokenizer, "<think>x"), *ids_of(tokenizer, "</think>\n\nOk so.\n<tool_call>")]
    answer = AnswerText(tokenizer, HERMES_REPLY)
    said = [answer.push(i, True, entry) for i, entry in zip(ids, numbered(len(ids)), strict=True)]
    given = [ids[entry.chosen.token_id] for entry in merged([*said, answer.flush()]).logprobs]
    assert text_of(tokenizer, given) == "</think>\n\nOk so.\n<tool_call>"  # some text of each is content
    assert answer.num_reasoning == len(ids_of(tokenizer, "<think>x"))


def test_reasoning_tokens_are_counted_with_their_markers() -> None:
    assert entries("Hey")[1] == 0
    assert entries("<think>hm\n</think>\n\nyes")[1] == len(["<think>", "h", "m", "\n", "</think>"])
    prompted = Reply(known_formats()["think"], prefix="<think>\n")
    assert entries("hm</think>yes", prompted)[1] == len(["h", "m", "</think>"])
    assert entries("hm", prompted)[1:] == (2, 2)
    assert entries("思", prompted)[1:] == (3, 3)  # bytes


def test_stop_strings_apply_to_the_content() -> None:
    """Neither to reasoning, nor to calls and markers; hidden special tokens take part."""

    def told(text: str, *stop: str, free: int = 0) -> tuple[str, bool, int]:
        answer = AnswerText(TOKENIZERS["added"], HERMES_REPLY, (5,), stop)
        said = []
        for place, token_id in enumerate(ids_of(TOKENIZERS["added"], text)):
            said.append(answer.push(token_id, place >= free))
            if answer.stopped:
                return merged(said).text, True, answer.num_calls
        said.append(answer.flush())
        return merged(said).text, answer.stopped, answer.num_calls

    assert told("<think>END</think>ok END x", "END") == ("ok ", True, 0)
    assert told(f"ok\n{HERMES}", "name", "\n", "tool_call>") == ("ok", False, 1)
    assert told(f"ok{HERMES}END", "END") == ("ok", True, 1)
    assert told("a\nb", "\n") == ("a", True, 0)
    assert told("a\n", "\n") == ("a", True, 0)
    assert told("abcb", "b", free=2) == ("abc", True, 0)
    assert told("a<|hidden|>b", "<|hidden|>b") == ("a", True, 0)
    assert told("a<|hidden|>b", "a<|hidden|>") == ("", True, 0)
    assert told("<think>a<|hidden|></think>b", "<|hidden|>b") == ("b", False, 0)


def test_where_a_call_opens_is_known() -> None:
    """With the text that is there already, so that a grammar can go on behind them."""
    tokenizer = TOKENIZERS["added"]
    answer = AnswerText(tokenizer, HERMES_REPLY)
    openings = []
    for token_id in ids_of(tokenizer, f"Ok.\n{HERMES}\n{HERMES_NOW}"):
        answer.push(token_id)
        if answer.opening not in openings:
            openings.append(answer.opening)
        assert answer.opening is None or answer.opening == CallOpening()
    assert openings == [None, CallOpening()]
    assert answer.opening is None  # the second has ended, too

    merges = byte_level_tokenizer()
    merges.add_tokens(['call>{"name', "<tool_"])
    answer = AnswerText(merges, HERMES_REPLY)
    for token_id in ids_of(merges, 'a <tool_call>{"name'):
        answer.push(token_id)
    assert answer.opening == CallOpening('{"name')

    answer = AnswerText(PLAIN, Reply(known_formats()["llama3"], TOOLS))
    ids = ids_of(PLAIN, LLAMA)
    behind = len(ids_of(PLAIN, '{"name": "'))
    for token_id in ids[:behind]:
        assert answer.opening is None
        answer.push(token_id)
    assert answer.opening == CallOpening('{"name": "')


# In the engine.


def run(text: str, *, end: bool = True, reply: Reply | None = HERMES_REPLY, **sampling: object) -> Inbox:
    """What a caller hears of an answer of this text, which an end token ends, or the limit."""
    ids = ids_of(PLAIN, text)
    inbox = Inbox()
    params = SamplingParams.model_validate(sampling)
    request = ChatRequest("r", (5,), params, max_tokens=len(ids) + end, seed=0, reply=reply)
    running = Running(request, inbox, Guide(frozenset({EOS})), TokenRules(), PLAIN, TokenNames(PLAIN))
    for token_id in [*ids, EOS] if end else ids:
        logprobs = Logprobs(-0.5, (), 1) if "logprobs" in sampling else None
        reason = running.append(Sampled(token_id, logprobs))
        running.tell(reason)
        if reason:
            return inbox
    raise AssertionError("it did not end")


def test_finish_reasons() -> None:
    named = Reply(known_formats()["hermes"], TOOLS, named=True)
    assert run(HERMES).ends == [FinishReason.TOOL_CALLS]
    assert run(f"{HERMES}END", stop=("END",)).ends == [FinishReason.TOOL_CALLS]
    assert run(HERMES, reply=named).ends == [FinishReason.STOP]
    assert run("no call").ends == [FinishReason.STOP]
    assert run("a <tool_call>no</tool_call>").ends == [FinishReason.STOP]
    assert run(HERMES[:40], end=False).ends == [FinishReason.LENGTH]
    assert run(HERMES, end=False).ends == [FinishReason.LENGTH]
    assert run(HERMES, reply=None).ends == [FinishReason.STOP]


def test_an_answer_with_a_single_call_is_over_behind_it_where_no_grammar_says_so() -> None:
    single = Reply(known_formats()["hermes"], TOOLS, single=True)
    for text in (HERMES + HERMES_NOW, f"Ok. {HERMES} and more"):
        inbox = run(text, reply=single)
        assert inbox.ends == [FinishReason.TOOL_CALLS]
        assert joined([delta for event in inbox.events for delta in event.tool_calls]) == (ONE,)
    assert run("a <tool_call>no</tool_call> b", reply=single).text == "a <tool_call>no</tool_call> b"
    inbox = run(HERMES + HERMES_NOW)
    assert len(joined([delta for event in inbox.events for delta in event.tool_calls])) == 2


def test_events_have_all_parts() -> None:
    inbox = run(f"<think>hm</think>Ok.\n{HERMES}", logprobs=0, return_token_ids=True)
    events = inbox.events
    assert inbox.text == "Ok."
    assert "".join(event.reasoning for event in events) == "hm"
    assert joined([delta for event in events for delta in event.tool_calls]) == (ONE,)
    assert sum(len(event.logprobs) for event in events) == len(ids_of(PLAIN, "Ok."))
    assert sum(len(event.token_ids) for event in events) == inbox.last.num_output_tokens
    assert inbox.last.num_reasoning_tokens == len(ids_of(PLAIN, "<think>hm</think>"))


def test_what_is_not_parsed_is_text() -> None:
    inbox = run(f"<think>hm</think>Ok.\n{HERMES}", reply=None, logprobs=0)
    assert inbox.text == f"<think>hm</think>Ok.\n{HERMES}"
    assert inbox.last.num_reasoning_tokens == 0
    assert not any(event.reasoning or event.tool_calls for event in inbox.events)
    assert sum(len(event.logprobs) for event in inbox.events) == inbox.last.num_output_tokens


def test_the_end_token_belongs_to_what_it_ends() -> None:
    """Its log-probability is among those of a content, as without a format, but not of a call."""
    assert sum(len(event.logprobs) for event in run("Hey", logprobs=0).events) == len(ids_of(PLAIN, "Hey")) + 1
    assert sum(len(event.logprobs) for event in run(HERMES, logprobs=0).events) == 0
