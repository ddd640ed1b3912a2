from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_engine.errors import InvalidArgumentError
from embedder.checkpoint import load_checkpoint
from embedder.config import EmbedderConfig
from embedder.parse import ParsedRequest, RequestParser, WireRequest
from tests.embeddings.checkpoints import POSITIONS, VOCABULARY, with_recipe

LAST_ID = len(VOCABULARY) - 1
TOO_LONG = f"this model's maximum context length is {POSITIONS} tokens"
CLS, SEP = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]


@pytest.fixture(scope="module")
def parser(bert: Path) -> RequestParser:
    return RequestParser(load_checkpoint(EmbedderConfig(model=str(bert), device="cpu")), max_text_bytes=1000)


def test_texts_become_token_ids_with_special_tokens(parser: RequestParser) -> None:
    parsed = parser.parse(WireRequest(text=[b"the cat", "你好".encode()]))
    words = [[VOCABULARY[word] for word in text] for text in (["the", "cat"], ["你好"])]
    assert parsed == ParsedRequest([[CLS, *ids, SEP] for ids in words], dimensions=32)


def test_token_ids_are_taken_as_they_are(parser: RequestParser) -> None:
    parsed = parser.parse(WireRequest(token_ids=[b"[5, 6]", f" [0, {LAST_ID}] ".encode()], dimensions=[8, 8]))
    assert parsed == ParsedRequest([[5, 6], [0, LAST_ID]], dimensions=8)


def test_lower_case(tmp_path: Path) -> None:
    from tests.embeddings import checkpoints

    folder = with_recipe(checkpoints.save(tmp_path, checkpoints.bert()), None, settings={"do_lower_case": True})
    parser = RequestParser(load_checkpoint(EmbedderConfig(model=str(folder), device="cpu")), 1000)
    assert parser.parse(WireRequest(text=[b"The CAT"])) == parser.parse(WireRequest(text=[b"the cat"]))


@pytest.mark.parametrize("length", [POSITIONS - 2, POSITIONS - 1])
def test_the_longest_text(parser: RequestParser, length: int) -> None:
    request = WireRequest(text=[b"cat " * length])
    if length + 2 <= POSITIONS:
        assert len(parser.parse(request).rows[0]) == POSITIONS
    else:
        with pytest.raises(
            InvalidArgumentError,
            match=f"text: {POSITIONS + 1} tokens given; this model's maximum context length is 40 tokens",
        ):
            parser.parse(request)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "exactly one of text and token_ids is required, neither given"),
    "both": ({"text": [b"a"], "token_ids": [b"[5]"]}, "exactly one of text and token_ids is required, both given"),
    "empty text": ({"text": [b""]}, "text: empty; at least one"),
    "empty text in a row": ({"text": [b"a", b"a", b""]}, "row 2: text: empty"),
    "NUL": ({"text": [b"a\0b"]}, "text: holds a NUL character at position 1"),
    "not UTF-8": ({"text": [b"ab\xff"]}, "text: not valid UTF-8 at byte 2"),
    "too many bytes": ({"text": [b"a" * 1001]}, "text: 1001 bytes given; at most 1000 are allowed"),
    "not JSON": ({"token_ids": [b"[5"]}, "token_ids: not JSON"),
    "no list": ({"token_ids": [b'{"a": 1}']}, "token_ids: must be a JSON array of token ids (got {'a': 1})"),
    "no integers": ({"token_ids": [b"[5, 1.5]"]}, "token_ids: must contain only integers (got 1.5)"),
    "truth values": ({"token_ids": [b"[true]"]}, "token_ids: must contain only integers (got True)"),
    "lists in the list": ({"token_ids": [b"[[5]]"]}, "token_ids: must contain only integers (got [5])"),
    "NaN": ({"token_ids": [b"[NaN]"]}, "token_ids: must contain only integers (got nan)"),
    "a number of many digits": ({"token_ids": [b"[" + b"9" * 900 + b"]"]}, "token_ids: token id 99999"),
    "no tokens": ({"token_ids": [b"[]"]}, "token_ids: no tokens; at least one is required"),
    "negative": ({"token_ids": [b"[-1]"]}, f"token id -1 is not in the vocabulary; allowed are 0 to {LAST_ID}"),
    "no such id": ({"token_ids": [b"[5]", b"[21]"]}, "row 1: token_ids: token id 21 is not in the vocabulary"),
    "too many ids": ({"token_ids": [b"[" + b"5," * 40 + b"5]"]}, f"token_ids: 41 tokens given; {TOO_LONG}"),
    "ids not UTF-8": ({"token_ids": [b"\xff"]}, "token_ids: not valid UTF-8 at byte 0"),
    "dimensions of zero": ({"text": [b"a"], "dimensions": [0]}, "dimensions: 0 given; allowed are 1 to 32"),
    "dimensions over the width": ({"text": [b"a"], "dimensions": [33]}, "dimensions: 33 given; allowed are 1 to 32"),
    "dimensions that differ": (
        {"text": [b"a", b"a"], "dimensions": [8, 9]},
        "dimensions: 8 and 9 given; all rows of a request must have the same value",
    ),
    "parameter": (
        {"text": [b"a"], "parameters": {"normalize": False}},
        "normalize: unknown parameter (value False); allowed are truncate_prompt_tokens, truncation_side",
    ),
    "truncation to nothing": (
        {"text": [b"a"], "parameters": {"truncate_prompt_tokens": 0}},
        "truncate_prompt_tokens: must be -1 or 1 to 40, this model's maximum context length (got 0)",
    ),
    "truncation below nothing": (
        {"text": [b"a"], "parameters": {"truncate_prompt_tokens": -2}}, "truncate_prompt_tokens: must be -1",
    ),
    "truncation to more than fits": (
        {"text": [b"a"], "parameters": {"truncate_prompt_tokens": 41}}, "truncate_prompt_tokens: must be -1",
    ),
    "truncation that is no number": (
        {"text": [b"a"], "parameters": {"truncate_prompt_tokens": "5"}}, "truncate_prompt_tokens: must be -1",
    ),
    "truncation that is a truth value": (
        {"text": [b"a"], "parameters": {"truncate_prompt_tokens": True}}, "truncate_prompt_tokens: must be -1",
    ),
    "truncation to the special tokens": (
        {"text": [b"cat cat"], "parameters": {"truncate_prompt_tokens": 2}},
        "truncate_prompt_tokens: 2 given; at least 3 are required: every text has 2 special tokens",
    ),
    "side": (
        {"text": [b"a"], "parameters": {"truncation_side": "middle"}},
        "truncation_side: must be right or left (got 'middle')",
    ),
    "odd parameter": ({"text": [b"a"], "parameters": {"a\nb" * 50: 1}}, r"a\nb"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_named_with_its_value_and_what_is_allowed(parser: RequestParser, case: str) -> None:
    inputs, message = REFUSED[case]
    with pytest.raises(InvalidArgumentError) as failure:
        parser.parse(WireRequest(**inputs))
    assert str(failure.value).startswith(message) or message in str(failure.value)
    assert len(str(failure.value)) < 250


@pytest.mark.parametrize(
    ("limit", "side", "kept"),
    [(5, None, slice(0, 3)), (5, "right", slice(0, 3)), (5, "left", slice(-3, None)), (5.0, "left", slice(-3, None))],
)
def test_a_longer_text_is_cut_and_keeps_its_special_tokens(
    parser: RequestParser, limit: float, side: str | None, kept: slice
) -> None:
    words = ["the", "cat", "dog", "你好", "cat"]
    words = [word for word in words if word in VOCABULARY]
    ids = [VOCABULARY[word] for word in words]
    parameters = {"truncate_prompt_tokens": limit, **({"truncation_side": side} if side else {})}
    texts = [" ".join(words).encode(), b"cat", b"the cat"]
    parsed = parser.parse(WireRequest(text=texts, parameters=parameters))
    assert parsed.rows[0] == [CLS, *ids[kept], SEP]
    assert parsed.rows[1:] == parser.parse(WireRequest(text=texts[1:])).rows


@pytest.mark.parametrize(("side", "kept"), [("right", [5, 6]), ("left", [7, 8])])
def test_longer_token_ids_are_cut(parser: RequestParser, side: str, kept: list[int]) -> None:
    parameters = {"truncate_prompt_tokens": 2, "truncation_side": side}
    request = WireRequest(token_ids=[b"[5,6,7,8]", b"[9]"], parameters=parameters)
    assert parser.parse(request).rows == [kept, [9]]


def test_minus_one_is_the_longest_text(parser: RequestParser) -> None:
    request = WireRequest(text=[b"cat " * 100, b"cat"], parameters={"truncate_prompt_tokens": -1})
    rows = parser.parse(request).rows
    assert [len(row) for row in rows] == [POSITIONS, 3]
    assert (rows[0][0], rows[0][-1]) == (CLS, SEP)


@given(st.integers(3, POSITIONS), st.lists(st.sampled_from(sorted(VOCABULARY)), max_size=60), st.booleans())
def test_a_cut_text_is_what_transformers_makes_of_it(
    parser: RequestParser, limit: int, words: list[str], from_the_left: bool
) -> None:
    text = " ".join(["cat", *words])
    side = "left" if from_the_left else "right"
    reference = parser._checkpoint.tokenizer.from_str(parser._checkpoint.tokenizer.to_str())
    reference.enable_truncation(limit, direction=side)
    parameters = {"truncate_prompt_tokens": limit, "truncation_side": side}
    assert parser.parse(WireRequest(text=[text.encode()], parameters=parameters)).rows == [reference.encode(text).ids]


def test_tritons_own_field_of_a_request_says_nothing(parser: RequestParser) -> None:
    assert parser.parse(WireRequest(text=[b"cat"], parameters={"id": "mine"})) == parser.parse(
        WireRequest(text=[b"cat"])
    )


def test_deep_nesting_is_refused(bert: Path) -> None:
    parser = RequestParser(load_checkpoint(EmbedderConfig(model=str(bert), device="cpu")), max_text_bytes=1 << 20)
    with pytest.raises(InvalidArgumentError, match="token_ids: nested too deeply"):
        parser.parse(WireRequest(token_ids=[b"[" * 100_000]))


def test_a_text_without_tokens_is_refused(tmp_path: Path) -> None:
    from tests.embeddings import checkpoints

    folder = checkpoints.save(tmp_path, checkpoints.bert(), special_tokens=False)
    parser = RequestParser(load_checkpoint(EmbedderConfig(model=str(folder), device="cpu")), 1000)
    with pytest.raises(InvalidArgumentError, match="text: no tokens"):
        parser.parse(WireRequest(text=[b"  "]))


@given(
    st.dictionaries(
        st.sampled_from(["text", "token_ids", "dimensions"]),
        st.lists(st.one_of(st.binary(max_size=40), st.just(b"[5]"), st.just(b"cat")), min_size=1, max_size=3),
    )
)
def test_garbage_is_refused_or_read_and_nothing_else(parser: RequestParser, inputs: dict[str, Any]) -> None:
    if "dimensions" in inputs:
        inputs["dimensions"] = [len(value) - 5 for value in inputs["dimensions"]]
    try:
        parsed = parser.parse(WireRequest(**inputs))
    except InvalidArgumentError:
        return
    assert all(1 <= len(row) <= POSITIONS for row in parsed.rows)
