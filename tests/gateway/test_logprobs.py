from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.answers.logprobs import CompletionLogprobs, chat_logprobs, prompt_logprobs
from triton_chat.types import PromptAlternative, PromptLogprob, TokenLogprob, TopLogprob


def token(raw: bytes, logprob: float = -0.5, top: tuple[TopLogprob, ...] = ()) -> TokenLogprob:
    """As the engine names it: U+FFFD for what is no whole character."""
    return TokenLogprob(raw.decode(errors="replace"), logprob, tuple(raw), top)


def alternative(raw: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(raw.decode(errors="replace"), logprob, tuple(raw))


def of_prompt(raw: bytes, logprob: float | None = -0.5, top: tuple[PromptAlternative, ...] = ()) -> PromptLogprob:
    rank = None if logprob is None else 3
    return PromptLogprob(raw.decode(errors="replace"), logprob, tuple(raw), raw[0], rank, top)


def offsets(text: str, *pieces: bytes) -> list[int]:
    """Of the tokens of a prompt, one chunk each, and of an answer of one token."""
    logprobs, first, *others = CompletionLogprobs(0), *pieces
    found = logprobs.add([], [of_prompt(first, None)], text).text_offset or []
    for piece in others:
        found += logprobs.add([], [of_prompt(piece)], "").text_offset or []
    return found + (logprobs.add([token(b"!")], (), "!").text_offset or [])


PARTS = [token(bytes([byte])) for byte in "中".encode()]


def test_chat() -> None:
    top = (alternative(b"a", -0.25), TopLogprob("b", -math.inf, None))
    (entry,) = chat_logprobs([token(b"a", -0.25, top)])
    assert entry.model_dump() == {
        "token": "a",
        "bytes": [97],
        "logprob": -0.25,
        "top_logprobs": [
            {"token": "a", "bytes": [97], "logprob": -0.25},
            {"token": "b", "bytes": None, "logprob": -9999.0},
        ],
    }
    json.loads(entry.model_dump_json(), parse_constant=pytest.fail)


def test_completions() -> None:
    top = (alternative(b"Hi", -0.1), alternative(b"Ho", -2.0))
    logprobs = CompletionLogprobs().add([token(b"Hi", -0.1, top), token(b" all", -3.0, top)])
    assert logprobs.model_dump() == {
        "tokens": ["Hi", " all"],
        "token_logprobs": [-0.1, -3.0],
        "top_logprobs": [{"Hi": -0.1, "Ho": -2.0}, {"Hi": -0.1, "Ho": -2.0, " all": -3.0}],
        "text_offset": [0, 2],
    }


def test_an_echoed_prompt_comes_before_the_answer_and_its_first_token_has_nulls() -> None:
    top = (PromptAlternative("x", -0.1, (120,), 120), PromptAlternative("y", -math.inf, (121,), 121))
    logprobs = CompletionLogprobs(1).add(
        [token(b"!", -1.0, (alternative(b"!", -1.0),))], [of_prompt(b"a", None), of_prompt(b"b", -2.0, top)], "ab!"
    )
    assert json.loads(logprobs.model_dump_json(warnings="error")) == {
        "tokens": ["a", "b", "!"],
        "token_logprobs": [None, -2.0, -1.0],
        "top_logprobs": [None, {"x": -0.1, "b": -2.0}, {"!": -1.0}],
        "text_offset": [0, 1, 2],
    }


def test_every_chunk_has_alternatives_if_they_were_asked_for() -> None:
    assert CompletionLogprobs(1).add([], [of_prompt(b"a", None)], "a").top_logprobs == [None]
    assert CompletionLogprobs(0).add([], [of_prompt(b"a", None)], "a").top_logprobs is None


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("ab c", [b"a", b"b", b" c"], [0, 1, 2, 4]),
        ("ab c", [b"<s>", b"ab", b" c"], [0, 0, 2, 4]),  # added by the tokenizer
        ("ab c", [b"<s>", b" ab", b" c"], [0, 0, 2, 4]),  # and a space in front, as in Llama 2
        (" ab", [b" ab"], [0, 3]),
        ("<s>ab", [b"<s>", b"ab"], [0, 3, 5]),  # of a prompt in token ids
        ("中ab", [b"\xe4", b"\xb8", b"\xad", b"ab"], [0, 0, 0, 1, 3]),
        ("a\ufffd", [b"a", b"\xe4"], [0, 1, 2]),  # it ends within a character
        ("HELLO it is me", [b"<s>", b"hello", b" it", b" is", b" me"], [0, 0, 0, 0, 3, 6]),  # changed by the tokenizer
    ],
)
def test_offsets_in_an_echoed_prompt(text: str, pieces: list[bytes], expected: list[int]) -> None:
    assert offsets(text, *pieces) == expected


def test_of_alternatives_with_one_name_the_most_probable_counts() -> None:
    """lm-eval takes the token for the most probable one when no alternative has more."""
    chosen = TokenLogprob("A", -5.0, (65,), (TopLogprob("A", -0.1, (65,)), TopLogprob("B", -3.0, (66,))))
    assert CompletionLogprobs(2).add([chosen]).top_logprobs == [{"A": -0.1, "B": -3.0}]


def test_prompt_logprobs_are_told_by_token_id() -> None:
    top = (PromptAlternative("x", -0.1, (120,), 120), PromptAlternative("y", -math.inf, (121,), 121))
    found = prompt_logprobs([of_prompt(b"a", None), of_prompt(b"b", -2.0, top), of_prompt(b"x", -0.1, top)], 1)
    x = {"logprob": -0.1, "rank": 1, "decoded_token": "x"}
    assert found == [
        None,
        {"98": {"logprob": -2.0, "rank": 3, "decoded_token": "b"}, "120": x},
        {"120": x},
    ]
    assert prompt_logprobs([of_prompt(b"b", -2.0, top)], 2)[0]["121"]["logprob"] == -9999.0  # type: ignore[index]


def test_no_alternatives_asked_for() -> None:
    assert CompletionLogprobs().add([token(b"a")]).top_logprobs is None


def test_the_parts_of_a_character_have_its_place_and_names_of_their_own() -> None:
    logprobs = CompletionLogprobs().add([token("好".encode()), *PARTS, token(b"!")])
    assert logprobs.text_offset == [0, 1, 1, 1, 2]
    assert logprobs.tokens == ["好", r"bytes:\xe4", r"bytes:\xb8", r"bytes:\xad", "!"]


def test_alternatives_that_are_parts_do_not_hide_one_another() -> None:
    top = (alternative(b"\xe4", -1.0), alternative(b"\xe5", -2.0))
    (entry,) = CompletionLogprobs().add([token(b"\xe4", -1.0, top)]).top_logprobs or []
    assert entry == {r"bytes:\xe4": -1.0, r"bytes:\xe5": -2.0}


def test_a_replacement_character_that_is_meant_keeps_its_name() -> None:
    assert CompletionLogprobs().add([token("\ufffd".encode())]).tokens == ["\ufffd"]


def test_tokens_without_bytes() -> None:
    entries = [TokenLogprob("ab", -1.0, None), TokenLogprob("c", -1.0, None)]
    assert CompletionLogprobs().add(entries).text_offset == [0, 2]


@given(st.text(st.characters(codec="utf-8"), max_size=12), st.lists(st.integers(1, 4), max_size=40), st.integers(0, 40))
def test_text_offset_is_where_the_token_begins(text: str, sizes: list[int], chunk: int) -> None:
    raw, tokens, starts = text.encode(), [], []
    position = 0
    for size in [*sizes, len(raw)]:
        if piece := raw[position : position + size]:
            tokens.append(token(piece))
            starts.append(position)
        position += size
    expected = [len(raw[:start].decode(errors="ignore")) for start in starts]

    assert CompletionLogprobs().add(tokens).text_offset == expected
    in_chunks = CompletionLogprobs()
    first, second = in_chunks.add(tokens[:chunk]), in_chunks.add(tokens[chunk:])
    assert [*(first.text_offset or []), *(second.text_offset or [])] == expected
