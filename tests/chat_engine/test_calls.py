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

from chat_engine.native.engine import NativeEngine
from chat_engine.native.grammar import Grammars
from chat_engine.native.masks import MaskFiller
from chat_engine.reading.answer_rules import AnswerRules
from chat_engine.reading.chat_parameters import read_chat_parameters
from chat_engine.reading.prompt_parser import Prompt
from chat_engine.request import ChatRequest, FinishReason, SamplingParams, StructuredOutputs
from chat_engine.text.answer_formats import known_formats
from tests.chat_engine.builders import EOS, Inbox, byte_level_tokenizer, examples, make_config, run_out
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
