"""Answers that must follow something: valid by construction, whatever the model, and whoever stands beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from chat_engine.answering.grammar import Grammars
from chat_engine.answering.guide import Guide
from chat_engine.errors import InvalidArgumentError, RequestCancelledError
from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.sampler import SamplingState
from chat_engine.native.token_rules import TokenRules
from chat_engine.reading.lark import Lark
from chat_engine.reading.structured import lark
from chat_engine.request import Constraint, FinishReason, Reply
from chat_engine.text.answer_formats import known_formats
from tests.chat_engine.builders import (
    EOS,
    Inbox,
    byte_fallback_tokenizer,
    checked_step,
    examples,
    make_config,
    renamed,
    run_out,
    save_model,
    solo,
)
from tests.chat_engine.guided import (
    TOOL,
    VOCAB,
    RandomRunner,
    answer,
    constraint,
    grammars,
    guided_engine,
    guided_request,
    tokenizer,
)

STOP, LENGTH, CANCELLED, ERROR = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.ERROR


def ids(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False).ids


def token(text: str) -> int:
    (only,) = ids(text)
    return only


# Valid by construction.

NAMES = st.sampled_from(["a", "name", "中文", "😀", 'q"uote', "back\\slash", ""])
TEXTS = st.sampled_from(["x", "hello", "你好", "🎉", '"', "\\", "\n"])
LEAVES = st.one_of(
    st.just({"type": "string"}),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, *[st.integers(0, 4)] * 2
    ),
    st.sampled_from(["^[a-c]+$", "^\\d{3}-\\d{2}$", "^[中国]{1,3}$", "x.y"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "email"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": "number"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-50, 50),
        st.integers(0, 200),
    ),
    st.lists(TEXTS, min_size=1, max_size=4, unique=True).map(lambda values: {"enum": values}),
    TEXTS.map(lambda value: {"const": value}),
)


def schemas_of(inner: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[dict[str, object]]:
    def of_object(properties: dict[str, object], required: list[bool], open_: bool) -> dict[str, object]:
        needed = [name for name, is_needed in zip(properties, required, strict=False) if is_needed]
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": open_}

    return st.one_of(
        st.builds(
            of_object,
            st.dictionaries(NAMES, inner, max_size=4),
            st.lists(st.booleans(), min_size=4, max_size=4),
            st.sampled_from([False, False, True]),
        ),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(
            lambda items: {"type": "array", "prefixItems": items, "minItems": len(items), "items": False},
            st.lists(inner, min_size=1, max_size=3),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    )


SCHEMAS = st.recursive(LEAVES, schemas_of, max_leaves=6)


@examples(120)
@given(schema=SCHEMAS, seed=st.integers(0, 10_000), temperature=st.sampled_from([0.0, 1.0, 1.5, 2.0]))
def test_json_that_stops_follows_its_schema(schema: dict[str, object], seed: int, temperature: float) -> None:
    inbox = answer(guided_request(outputs={"json": schema}, seed=seed, temperature=temperature))
    if inbox.last.finish_reason is STOP:
        jsonschema.validate(json.loads(inbox.text, strict=True), schema)
    else:
        assert (inbox.last.finish_reason, inbox.output) == (LENGTH, 400)


def test_most_json_comes_to_an_end() -> None:
    """What the test before must not have said nothing about."""
    schema = {
        "type": "object",
        "properties": {
            "名": {"type": "string", "maxLength": 5},
            "n": {"type": "integer", "maximum": 100, "minimum": 0},
        },
        "required": ["名", "n"],
        "additionalProperties": False,
    }
    inboxes = [answer(guided_request(outputs={"json": schema}, seed=seed)) for seed in range(10)]
    assert [inbox.last.finish_reason for inbox in inboxes] == [STOP] * 10
    assert len({inbox.text for inbox in inboxes}) == 10


@examples(20)
@given(seed=st.integers(0, 10_000))
def test_any_object_is_an_object(seed: int) -> None:
    inbox = answer(guided_request(outputs={"json": True}, seed=seed, max_tokens=150, stop=("}",), temperature=2.0))
    if inbox.last.finish_reason is STOP:
        assert isinstance(json.loads(inbox.text), dict)


REGEXES = [
    "[a-c]{2,5}(x|y)", r"\d{3}-\d{4}", "(yes|no|maybe)", "[一-龥]{1,4}", "(😀|🎉|中){2}", "a*", "(a|b)*c?", r"[^a]{3}",
    r"(?i)hello", r"[\d-]{3}\n?", r"^anchored$", r"a/b\\c\"d", r"\u4e2d\x41", "(a?){4}b",
]  # fmt: skip


@examples(80)
@given(regex=st.sampled_from(REGEXES), seed=st.integers(0, 10_000))
def test_text_that_stops_matches_its_regex(regex: str, seed: int) -> None:
    inbox = answer(guided_request(outputs={"regex": regex}, seed=seed, temperature=2.0, max_tokens=200))
    if inbox.last.finish_reason is STOP:
        assert re.fullmatch(regex, inbox.text)


CHOICE_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), TEXTS, NAMES
)


@examples(80)
@given(choices=st.lists(CHOICE_TEXTS, min_size=1, max_size=5), seed=st.integers(0, 10_000))
def test_an_answer_is_one_of_its_choices(choices: list[str], seed: int) -> None:
    inbox = answer(guided_request(outputs={"choice": choices}, seed=seed))
    assert inbox.last.finish_reason is STOP
    assert inbox.text in choices


def test_every_choice_comes_also_one_that_begins_another() -> None:
    choices = ["a", "ab", "中", "中文", "😀"]
    fair = RandomRunner(spread=0.3)
    texts = {answer(guided_request(outputs={"choice": choices}, seed=seed), fair).text for seed in range(60)}
    assert texts == set(choices)


def test_a_grammar_may_name_special_tokens() -> None:
    inbox = answer(guided_request(outputs={"grammar": f'start: {TOOL} "hi" <[{token("!")}]>'}, return_token_ids=True))
    made = [token_id for event in inbox.events for token_id in event.token_ids]
    assert made == [tokenizer().token_to_id(TOOL), token("h"), token("i"), token("!")]
    assert (inbox.text, inbox.last.finish_reason) == ("hi!", STOP)


@pytest.mark.parametrize(
    "regex",
    [
        "((a{0,100}){0,100}){0,100}",
        "((.{0,100}){0,100}){0,100}",
        "(a|b)*a(a|b){20}",
        "x{1000000}",
        "(.{0,300}a){50}",
        ".*a.{30}",
    ],
)
def test_a_regex_that_explodes_is_refused_or_followed_or_ends_its_own_request(regex: str) -> None:
    try:
        inbox = answer(guided_request(outputs={"regex": regex}, max_tokens=60))
    except InvalidArgumentError:
        return
    if inbox.last.finish_reason is ERROR:
        assert isinstance(inbox.last.error, InvalidArgumentError)
        assert inbox.last.error.field == "structured_outputs.regex"
        assert "too complex" in inbox.last.error.sentence
    elif inbox.last.finish_reason is STOP:
        assert re.fullmatch(regex, inbox.text)


def test_a_tokenizer_of_bytes_and_words() -> None:
    """SentencePiece's manner, in which words begin with a blank."""
    words = byte_fallback_tokenizer()
    own = Grammars(words, VOCAB, frozenset({EOS}), make_config(grammar_seconds=20.0))
    texts = set()
    for seed in range(12):
        engine, inbox = NativeEngine(make_config(), RandomRunner(), words, grammars=own), Inbox()
        engine.submit(guided_request(outputs={"choice": ["hello 中", " hello", "ab"]}, seed=seed), inbox)
        run_out(engine)
        texts.add(inbox.text)
    own.close()
    assert texts == {"hello 中", " hello", "ab"}


# With the other parameters.


def test_max_tokens_cuts_and_says_so() -> None:
    inbox = answer(guided_request(outputs={"regex": "a{10}"}, max_tokens=4))
    assert (inbox.text, inbox.last.finish_reason) == ("aaaa", LENGTH)


def test_an_answer_complete_at_the_limit_is_a_stop() -> None:
    inbox = answer(guided_request(outputs={"regex": "a{10}"}, max_tokens=10))
    assert (inbox.text, inbox.last.finish_reason) == ("a" * 10, STOP)


def test_a_finished_grammar_ends_the_answer_without_a_pass_for_the_end_token() -> None:
    runner = RandomRunner()
    inbox = answer(guided_request(outputs={"choice": ["abc"]}), runner)
    assert (inbox.text, inbox.output, len(runner.steps)) == ("abc", 3, 3)


@pytest.mark.parametrize("sampling", [{"ignore_eos": True}, {"min_tokens": 8}, {"ignore_eos": True, "min_tokens": 8}])
def test_a_finished_grammar_ends_the_answer_also_when_it_is_to_go_on(sampling: dict[str, object]) -> None:
    for outputs in ({"choice": ["abc"]}, {"regex": "abc"}, {"grammar": 'start: "ab" c\nc: "c" | "c" ""'}):
        inbox = answer(guided_request(outputs=outputs, **sampling))
        assert (inbox.text, inbox.last.finish_reason) == ("abc", STOP)


def test_min_tokens_and_ignore_eos_go_on_where_the_grammar_lets_them() -> None:
    eager = RandomRunner(favourite=EOS)
    assert answer(guided_request(outputs={"regex": "[ab]*"}), eager).text == ""
    inbox = answer(guided_request(outputs={"regex": "[ab]*"}, min_tokens=5), eager)
    assert (len(inbox.text), inbox.last.finish_reason) == (5, STOP)
    inbox = answer(guided_request(outputs={"regex": "[ab]*"}, ignore_eos=True, max_tokens=20), eager)
    assert (len(inbox.text), inbox.last.finish_reason) == (20, LENGTH)
    inbox = answer(guided_request(outputs={"regex": "[ab]{0,7}"}, ignore_eos=True, max_tokens=20), eager)
    assert (len(inbox.text), inbox.last.finish_reason) == (7, STOP)


def test_the_grammar_wins_where_bans_leave_nothing() -> None:
    inbox = answer(guided_request(outputs={"choice": ["aaaaaa"]}, logit_bias={token("a"): -100}, frequency_penalty=2.0))
    assert inbox.text == "aaaaaa"
    runner = RandomRunner()
    forbidden = TokenRules(no_repeat_ngram_size=1, suppressed=frozenset({token("a")}))
    runner.defaults = type(runner.defaults)(frozenset({EOS}), {}, None, forbidden)
    for choices in (["aaaa"], ["aaaa", "abab"], ["aXaX"]):
        assert answer(guided_request(outputs={"choice": choices}), runner).text in choices


def test_bans_count_among_what_the_grammar_allows() -> None:
    runner = RandomRunner()
    runner.defaults = type(runner.defaults)(frozenset({EOS}), {}, None, TokenRules(suppressed=frozenset({token("a")})))
    for seed in range(10):
        assert answer(guided_request(outputs={"regex": "[ab]{5}"}, seed=seed), runner).text == "bbbbb"


def test_the_grammar_wins_where_the_model_gives_its_tokens_no_chance() -> None:
    class Never(RandomRunner):
        def logits(self, tokens: list[int]) -> torch.Tensor:
            logits = super().logits(tokens)
            logits[token("a")] = -torch.inf
            return logits

    for temperature in (0.0, 1.0):
        assert answer(guided_request(outputs={"regex": "a{3}"}, temperature=temperature), Never()).text == "aaa"


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"temperature": 0.0}])
def test_cuts_are_made_among_what_the_grammar_allows(cut: dict[str, object]) -> None:
    liked = RandomRunner(favourite=token("z"))
    for seed in range(5):
        inbox = answer(guided_request(outputs={"regex": "[ab]{5}"}, seed=seed, **cut), liked)
        assert re.fullmatch("[ab]{5}", inbox.text)


def test_logprobs_are_those_of_the_model() -> None:
    liked = RandomRunner(favourite=token("z"))
    inbox = answer(guided_request(outputs={"choice": ["ab"]}, logprobs=1), liked)
    entries = [entry for event in inbox.events for entry in event.logprobs]
    assert [entry.chosen.token for entry in entries] == ["a", "b"]
    assert all(entry.chosen.logprob < -900 for entry in entries)
    assert [entry.top[0].token for entry in entries] == ["z", "z"]


# Stop tokens and stop strings.


def test_a_stop_token_of_the_caller_ends_an_answer_only_where_it_is_complete() -> None:
    liked = RandomRunner(favourite=token("x"))
    inbox = answer(guided_request(outputs={"regex": "axbx*"}, stop_token_ids=(token("x"),)), liked)
    assert (inbox.text, inbox.last.finish_reason) == ("axb", STOP)


def test_a_stop_token_that_the_grammar_does_not_have_ends_a_complete_answer() -> None:
    special = tokenizer().token_to_id(TOOL)
    liked = RandomRunner(favourite=special)
    inbox = answer(guided_request(outputs={"regex": "aab*"}, stop_token_ids=(special,), ignore_eos=True), liked)
    assert (inbox.text, inbox.last.finish_reason) == ("aa", STOP)


def test_a_stop_string_ends_an_answer_only_where_it_is_complete() -> None:
    schema = {"type": "object", "properties": {"a": {"const": "x,y"}, "b": {"const": 1}}, "required": ["a", "b"]}
    for stop in (",", '"', "x", "}"):
        inbox = answer(guided_request(outputs={"json": {**schema, "additionalProperties": False}}, stop=(stop,)))
        assert inbox.last.finish_reason is STOP
        assert json.loads(inbox.text) == {"a": "x,y", "b": 1}


@examples(60)
@given(
    stops=st.lists(st.sampled_from([",", "b", "ab", "ba,", "中", ",中", "hello"]), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 1000),
    min_tokens=st.sampled_from([0, 0, 6]),
)
def test_an_answer_that_a_stop_string_ends_is_valid(stops: list[str], seed: int, min_tokens: int) -> None:
    regex = "(ab|ba|中|hello)(,(ab|ba|中|hello))*"
    inbox = answer(
        guided_request(outputs={"regex": regex}, stop=tuple(stops), seed=seed, max_tokens=40, min_tokens=min_tokens)
    )
    if inbox.last.finish_reason is STOP:
        assert re.fullmatch(regex, inbox.text)


def test_a_stop_string_does_end_a_complete_answer() -> None:
    liked = RandomRunner(favourite=token(","))
    inbox = answer(guided_request(outputs={"regex": "a(,a)*"}, stop=(",",)), liked)
    assert (inbox.text, inbox.last.finish_reason, inbox.output) == ("a", STOP, 2)


class Writer(RandomRunner):
    """It writes a text, where that is allowed; behind it, anything."""

    def __init__(self, text: str, prompt: int) -> None:
        super().__init__()
        self._wanted, self._prompt = ids(text), prompt

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        logits, place = super().logits(tokens), len(tokens) - self._prompt
        if place < len(self._wanted):
            logits[self._wanted[place]] += 1000
        return logits


@pytest.mark.parametrize("prefix", ["", "<think>\n"])
def test_a_stop_string_ends_the_answer_behind_reasoning(prefix: str) -> None:
    """Whether the model or the prompt has opened it, and though the reasoning has the string, too."""
    think = known_formats()["think"]
    inner = constraint(regex="a(,a)*")
    grammar = Lark(tokenizer()).behind_reasoning(inner.grammar, think, prefix)
    request = replace(
        guided_request(stop=(",",)),
        constraint=Constraint(grammar, inner.field, content=inner.grammar),
        reply=Reply(think, (), prefix),
    )
    written = ("" if prefix else "<think>\n") + "well, then</think>\n\na,a,a"
    inbox = answer(request, Writer(written, len(request.prompt_ids)))
    assert (inbox.text, inbox.last.finish_reason) == ("a", STOP)
    assert "".join(event.reasoning for event in inbox.events) == "well, then"


# Many requests.

MIXED = [
    None,
    {"regex": "[a-d]{30,60}"},
    None,
    {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 10, "maxItems": 12}},
    {"choice": ["中文" * 20, "hello" * 20]},
    {"grammar": 'start: (A | B)+\nA: /[ab]/\nB: "中"'},
]


def mixed() -> list:
    return [
        guided_request(f"r{i}", outputs, prompt=[5 + i], max_tokens=50, seed=i, temperature=1.2, presence_penalty=0.3)
        for i, outputs in enumerate(MIXED)
    ]


def together(engine: NativeEngine, cancelled: tuple[int, ...] = ()) -> list[Inbox]:
    inboxes = [Inbox() for _ in MIXED]
    for request, inbox in zip(mixed(), inboxes, strict=True):
        engine.submit(request, inbox)
    for _ in range(20):
        checked_step(engine)
    for i in cancelled:
        engine.cancel(f"r{i}")
    run_out(engine)
    return inboxes


def heard(inbox: Inbox) -> tuple[str, object, int]:
    return inbox.text, inbox.last.finish_reason, inbox.output


def test_streams_beside_constrained_ones_equal_their_solo_runs() -> None:
    alone = [heard(answer(request)) for request in mixed()]
    assert [heard(inbox) for inbox in together(guided_engine(max_sequences=6))] == alone


def test_the_same_through_preemptions() -> None:
    alone = [heard(answer(request)) for request in mixed()]
    engine = guided_engine(
        RandomRunner(num_blocks=20, block_size=8, max_step_tokens=64, max_model_len=100), max_sequences=6, queue_room=6
    )
    assert [heard(inbox) for inbox in together(engine)] == alone
    assert engine.scheduler.preemptions > 0


def test_a_cancelled_one_leaves_its_neighbours_alone() -> None:
    alone = [heard(answer(request)) for request in mixed()]
    inboxes = together(guided_engine(max_sequences=6), cancelled=(1, 3))
    for i in (0, 2, 4, 5):
        assert heard(inboxes[i]) == alone[i]
    for i in (1, 3):
        assert isinstance(inboxes[i].last.error, RequestCancelledError)


def test_the_same_with_the_weights_of_a_model(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    settings = {"model": str(save_model(config, tmp_path)), "dtype": "float32", "device": "cpu", "max_sequences": 6}
    runner = ModelRunner(make_config(**settings, kv_cache_tokens=1024))

    def engine() -> NativeEngine:
        return NativeEngine(make_config(**settings), runner, tokenizer(), grammars=grammars())

    alone = [heard(solo(engine, request)) for request in mixed()]
    assert [heard(inbox) for inbox in together(engine())] == alone
    assert [reason for _, reason, _ in alone].count(STOP) >= 2
    assert re.fullmatch("[a-d]{30,60}", alone[1][0])


def test_several_with_one_grammar_do_not_share_their_place_in_it() -> None:
    engine, inboxes = guided_engine(max_sequences=8, queue_room=8), [Inbox() for _ in range(8)]
    requests = [guided_request(f"r{i}", {"regex": "[ab]{10}"}, seed=i) for i in range(8)]
    for request, inbox in zip(requests, inboxes, strict=True):
        engine.submit(request, inbox)
    run_out(engine)
    assert all(re.fullmatch("[ab]{10}", inbox.text) for inbox in inboxes)
    assert [inbox.text for inbox in inboxes] == [answer(renamed(request, "x")).text for request in requests]
    assert len({inbox.text for inbox in inboxes}) > 4


def test_one_that_cannot_be_followed_any_more_ends_alone() -> None:
    limited = Grammars(tokenizer(), VOCAB, frozenset({EOS}), make_config(grammar_seconds=20.0))
    engine = NativeEngine(make_config(), RandomRunner(favourite=token("a")), tokenizer(), grammars=limited)
    hard, easy = Inbox(), Inbox()
    engine.submit(guided_request("hard", {"regex": "(.{0,300}a){50}"}), hard)
    engine.submit(guided_request("easy", {"regex": "b{30}"}), easy)
    run_out(engine)
    limited.close()
    assert (easy.text, easy.last.finish_reason) == ("b" * 30, STOP)
    assert hard.last.finish_reason is ERROR
    assert isinstance(hard.last.error, InvalidArgumentError)
    assert hard.last.error.field == "structured_outputs.regex"


def test_where_no_row_has_a_grammar_nothing_is_asked() -> None:
    runner = RandomRunner()
    state = SamplingState.start(guided_request().sampling, 0, frozenset(), ())
    state.guide = Guide(frozenset({EOS}), frozenset({EOS}))
    with runner._masks.filling([state]) as masks:
        assert masks is None
    assert state.plain


# Opened in the middle.


def opened(grammar_text: str, begun: str, *, single: bool = False) -> Guide:
    call = grammars().compile(Constraint(lark(grammar_text), "tools"))
    guide = Guide(frozenset({EOS}), frozenset({EOS}), call=call, single=single)
    for token_id in ids("free text "):
        guide.append(token_id)
    guide.open_call(begun)
    return guide


def allowed(guide: Guide) -> set[int]:
    assert guide.matcher is not None
    state = SamplingState.start(guided_request().sampling, 0, guide.stop_ids, ())
    state.guide = guide
    with RandomRunner()._masks.filling([state]) as masks:
        rows, mask = masks.forbidden()
    assert rows == [0]
    return set((~mask[0]).nonzero()[:, 0].tolist())


def test_a_grammar_opens_in_the_middle_and_leaves_the_answer_free_again() -> None:
    guide = opened('start: "hello" "!"', "he")
    assert not guide.ends_with(EOS)
    assert allowed(guide) == {token("ll")}  # what is certain comes in the tokens that the tokenizer would make
    for token_id in [*ids("ll"), token("o"), token("!")]:
        assert guide.matcher is not None
        guide.append(token_id)
    assert guide.matcher is None
    assert not guide.is_finished
    assert guide.ends_with(EOS)
    guide.append(token("z"))
    assert guide.error is None


def test_or_only_the_end_may_follow_it() -> None:
    guide = opened('start: "hi"', "h", single=True)
    assert not guide.is_finished
    guide.append(token("i"))
    assert guide.is_finished
    assert guide.error is None


def test_one_that_was_open_can_be_opened_again() -> None:
    guide = opened('start: "hi" | "ho"', "hi")
    assert guide.matcher is None
    guide.open_call("h")
    assert allowed(guide) == {token("i"), token("o")}


def test_what_cannot_follow_any_more_stays_free() -> None:
    guide = opened('start: "hi"', "xx")
    assert guide.matcher is None
    assert guide.error is None
    assert guide.ends_with(EOS)


def test_the_end_is_allowed_where_the_grammar_is_complete() -> None:
    guide = opened('start: "a" "b"?', "")
    assert allowed(guide) == {token("a")}
    guide.append(token("a"))
    assert allowed(guide) == {token("b"), EOS}
    assert guide.ends_with(EOS)
