from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.logprobs import CompletionLogprobs, chat_logprobs
from triton_chat.types import TokenLogprob, TopLogprob


def token(raw: bytes, logprob: float = -0.5, top: tuple[TopLogprob, ...] = ()) -> TokenLogprob:
    """As the engine names it: U+FFFD for what is no whole character."""
    return TokenLogprob(raw.decode(errors="replace"), logprob, tuple(raw), top)


def alternative(raw: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(raw.decode(errors="replace"), logprob, tuple(raw))


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
