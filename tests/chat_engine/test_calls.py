"""Calls of tools through the engine: whatever the model, a call has a known name and arguments of the tool's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from chat_engine.answering.grammar import Grammars
from chat_engine.errors import InvalidArgumentError, NotComputedError, RequestCancelledError
from chat_engine.native.engine import NativeEngine
from chat_engine.native.masks import MaskFiller
from chat_engine.reading.answer_rules import AnswerRules
from chat_engine.reading.chat_parameters import ChatParameters, read_chat_parameters
from chat_engine.reading.prompt_parser import Prompt
from chat_engine.request import ChatRequest, FinishReason, SamplingParams, StructuredOutputs
from chat_engine.text.answer import AnswerText
from chat_engine.text.answer_formats import known_formats
from tests.chat_engine.builders import EOS, Inbox, byte_level_tokenizer, checked_step, examples, make_config, run_out
from tests.chat_engine.guided import RandomRunner

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F", "开"]},
    },
    "required": ["city", "unit"],
}
SCHEMAS = {"get_weather": WEATHER, "now": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
FORMATS = {name: found for name, found in known_formats().items() if found.call}
MARKER = re.compile(r"<[^<>\s=]+>|\[[A-Z_]+\]")
PROMPT = (5, 6, 7)
VOCAB = 400

families = pytest.mark.parametrize("family", sorted(FORMATS))


@cache
def tokenizer(family: str) -> Tokenizer:
    """With the family's markers as tokens."""
    answer_format = FORMATS[family]
    assert answer_format.call
    assert answer_format.tags
    text = answer_format.call.written.model_dump_json()
    return byte_level_tokenizer(sorted({*answer_format.tags, *MARKER.findall(text)}))


@cache
def grammars(family: str) -> Grammars:
    return Grammars(tokenizer(family), VOCAB, frozenset({EOS}), make_config(grammar_seconds=20.0))


class ScriptRunner(RandomRunner):
    """Begins answers with the tokens of a script, as far as it may, and goes on at random."""

    def __init__(self, script: Sequence[int] = (), **limits: object) -> None:
        super().__init__(vocab_size=VOCAB, **limits)
        self._masks = MaskFiller(VOCAB, torch.device("cpu"))
        self._script = script

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        logits = super().logits(tokens)
        logits = torch.cat([logits, torch.full((VOCAB - len(logits),), -10.0)])
        place = len(tokens) - len(PROMPT)
        if place < len(self._script):
            logits[self._script[place]] += 1000
        return logits


def asked(
    family: str,
    chat: dict[str, object],
    outputs: StructuredOutputs | None = None,
    *,
    begun: str = "",
    request_id: str = "r",
    seed: int = 0,
    max_tokens: int = 700,
    **sampling: object,
) -> ChatRequest:
    config = make_config()
    parameters = read_chat_parameters(json.dumps({"tools": TOOLS, **chat}).encode(), config)
    rules = AnswerRules(config, (FORMATS[family], tokenizer(family)))
    reply, constraint = rules.of(outputs, parameters, Prompt(PROMPT, None, of_messages=True, begun=begun))
    params = SamplingParams.model_validate({"temperature": 1.0, **sampling})
    return ChatRequest(request_id, PROMPT, params, max_tokens, seed, constraint=constraint, reply=reply)


def engine_of(family: str, script: str = "", **limits: object) -> NativeEngine:
    ids = tokenizer(family).encode(script, add_special_tokens=False).ids
    return NativeEngine(make_config(), ScriptRunner(ids, **limits), tokenizer(family), grammars=grammars(family))


def answer(family: str, request: ChatRequest, script: str = "") -> Inbox:
    engine, inbox = engine_of(family, script), Inbox()
    engine.submit(request, inbox)
    run_out(engine)
    return inbox


def calls_of(inbox: Inbox) -> list[tuple[str, str]]:
    """Names and arguments."""
    found: dict[int, tuple[str, str]] = {}
    for event in inbox.events:
        for delta in event.tool_calls:
            name, arguments = found.get(delta.index, ("", ""))
            assert bool(delta.id) == bool(delta.name) == (not name)
            found[delta.index] = (name or delta.name, arguments + delta.arguments)
    return [found[index] for index in range(len(found))]


def check(calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])


@families
@examples(6)
@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([1.0, 2.0]), parallel=st.booleans())
def test_a_required_call_is_valid(family: str, seed: int, temperature: float, parallel: bool) -> None:
    chat = {"tool_choice": "required", "parallel_tool_calls": parallel}
    inbox = answer(family, asked(family, chat, seed=seed, temperature=temperature, min_tokens=2))
    calls = calls_of(inbox)
    assert inbox.text == ""
    if inbox.last.finish_reason is FinishReason.TOOL_CALLS:
        assert calls
        assert parallel or len(calls) == 1
        check(calls)
    else:  # it thought for too long, or called too often
        assert inbox.last.finish_reason is FinishReason.LENGTH
        check(calls[:-1])


@families
def test_a_named_tool_is_the_one_that_is_called(family: str) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    closed = "".join(FORMATS[family].tags or ())
    inbox = answer(family, asked(family, {"tool_choice": choice, "parallel_tool_calls": False}, begun=closed))
    assert inbox.last.finish_reason is FinishReason.STOP
    ((name, arguments),) = calls_of(inbox)
    assert name == "get_weather"
    jsonschema.validate(json.loads(arguments), WEATHER)


def opening(family: str) -> str:
    """With which the model begins a call by itself."""
    syntax = FORMATS[family].call
    assert syntax
    written = syntax.written
    if not syntax.opens:
        return written.before_name
    begin = written.before_all + written.before_name
    marker = next(marker for marker in syntax.opens if marker in begin)
    return begin[: begin.index(marker)] + marker


@families
@examples(6)
@given(seed=st.integers(0, 10_000), single=st.booleans())
def test_a_call_that_the_model_begins_is_valid(family: str, seed: int, single: bool) -> None:
    chat = {"parallel_tool_calls": not single}
    inbox = answer(family, asked(family, chat, seed=seed, max_tokens=400), opening(family))
    calls = calls_of(inbox)
    assert calls
    if inbox.last.finish_reason is FinishReason.TOOL_CALLS:
        check(calls)
        assert not single or len(calls) == 1
    else:  # after the call it is free, and at random it ends late
        assert inbox.last.finish_reason is FinishReason.LENGTH
        check(calls[:-1] if len(calls) > 1 or not inbox.text else calls)


# In company.


def mixed() -> list[ChatRequest]:
    """Calls that must be, calls that may be, and an answer without tools."""
    requests = [
        asked("hermes", {"tool_choice": "required"}, request_id="required", seed=1, max_tokens=80),
        asked("hermes", {}, request_id="auto", seed=2, max_tokens=80),
        asked("hermes", {"parallel_tool_calls": False}, request_id="single", seed=3, max_tokens=80),
    ]
    free = ChatRequest("free", PROMPT, SamplingParams(temperature=1.0), 80, 4)
    return [*requests, free]


def heard(inbox: Inbox) -> tuple[object, ...]:
    return inbox.text, inbox.last.finish_reason, inbox.last.num_output_tokens, calls_of(inbox)


def together(engine: NativeEngine, requests: Sequence[ChatRequest], *, cancelled: str = "") -> list[Inbox]:
    inboxes = [Inbox() for _ in requests]
    for request, inbox in zip(requests, inboxes, strict=True):
        engine.submit(request, inbox)
    for _ in range(30):
        checked_step(engine)
    engine.cancel(cancelled)
    run_out(engine)
    return inboxes


def test_neighbours_and_preemptions_change_nothing() -> None:
    script = opening("hermes")
    alone = [heard(answer("hermes", request, script)) for request in mixed()]
    assert alone[0][3]
    assert alone[1][3]
    crowded = engine_of("hermes", script, num_blocks=16, block_size=8, max_step_tokens=64, max_model_len=100)
    assert [heard(inbox) for inbox in together(crowded, mixed())] == alone
    assert crowded.scheduler.preemptions > 0


def test_one_that_is_cancelled_in_its_call_leaves_the_others_alone() -> None:
    script = opening("hermes")
    alone = [heard(answer("hermes", request, script)) for request in mixed()]
    inboxes = together(engine_of("hermes", script), mixed(), cancelled="auto")
    assert isinstance(inboxes[1].last.error, RequestCancelledError)
    assert calls_of(inboxes[1]), "it was in its call"
    assert [heard(inboxes[i]) for i in (0, 2, 3)] == [alone[i] for i in (0, 2, 3)]


def test_an_answer_that_cannot_be_read_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: AnswerText, *_: object) -> None:
        raise RuntimeError("a fault in the code of a format")

    monkeypatch.setattr(AnswerText, "push", fails)
    inboxes = together(engine_of("hermes"), mixed())
    assert [type(inbox.last.error) for inbox in inboxes] == [*[NotComputedError] * 3, type(None)]
    assert "fault" not in str(inboxes[0].last.error)


# Together with a form for the answer, and what is refused.

NUMBER = StructuredOutputs.model_validate({"json": {"type": "object", "properties": {}, "required": []}})


def test_an_answer_follows_its_form_or_is_a_call() -> None:
    request = asked("hermes", {}, NUMBER, seed=5)
    free = answer("hermes", request)
    assert free.last.finish_reason in (FinishReason.STOP, FinishReason.TOOL_CALLS, FinishReason.LENGTH)
    if free.last.finish_reason is FinishReason.STOP:
        assert isinstance(json.loads(free.text), dict)
    called = answer("hermes", asked("hermes", {}, NUMBER, seed=6), opening("hermes"))
    assert called.text == ""
    assert calls_of(called)


def test_a_form_comes_behind_the_reasoning() -> None:
    script = "<think>\nHm.\n</think>\n\n"
    inbox = answer("hermes", asked("hermes", {"tools": []}, NUMBER, seed=7), script)
    assert "".join(event.reasoning for event in inbox.events) == "Hm."
    assert inbox.last.num_reasoning_tokens > 0
    if inbox.last.finish_reason is FinishReason.STOP:
        assert isinstance(json.loads(inbox.text), dict)


def test_a_call_must_be_known_to_be_asked_for() -> None:
    chat = ChatParameters(tools=read_chat_parameters(json.dumps({"tools": TOOLS}).encode(), make_config()).tools)
    required = chat.model_copy(update={"tool_choice": "required"})
    prompt = Prompt(PROMPT, None, of_messages=True)
    for rules in (
        AnswerRules(make_config()),
        AnswerRules(make_config(), (known_formats()["think"], tokenizer("hermes"))),
    ):
        rules.of(None, chat, prompt)
        with pytest.raises(InvalidArgumentError, match="required is not possible") as caught:
            rules.of(None, required, prompt)
        assert caught.value.field == "tool_choice"
    with pytest.raises(InvalidArgumentError, match="cannot be combined") as caught:
        AnswerRules(make_config(), (FORMATS["hermes"], tokenizer("hermes"))).of(NUMBER, required, prompt)
    assert caught.value.field == "structured_outputs"


def test_a_schema_that_cannot_be_followed_is_refused_by_its_tool() -> None:
    tools = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {
        "type": "object", "properties": {"x": {"type": "strin"}}}}}]  # fmt: skip
    for choice in ("auto", "required"):
        with pytest.raises(InvalidArgumentError) as caught:
            answer("hermes", asked("hermes", {"tools": tools, "tool_choice": choice}))
        assert caught.value.field == "tools"
