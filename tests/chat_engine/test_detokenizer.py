from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from chat_engine.detokenizer import TextStream, TokenNames
from tests.chat_engine.builders import byte_fallback_tokenizer, byte_level_tokenizer, examples

BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
FAMILY = "👩‍👩‍👧‍👦"
PIECES = ("hello", " wor", "ld", "中", "文", "é", "😀", FAMILY, "\u0301", " ", "\n", "a", "ab", "aab", ".", "��")
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


NAMES = TokenNames(BYTE_LEVEL)
BYTE_IDS = {
    id(BYTE_LEVEL): {NAMES(i)[1]: i for i in range(3, 259)},
    id(BYTE_FALLBACK): {bytes([b]): BYTE_FALLBACK.token_to_id(f"<0x{b:02X}>") for b in range(256)},
}


def byte_tokens(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token per byte."""
    ids = BYTE_IDS[id(tokenizer)]
    return [ids[bytes([byte])] for byte in data]


def stream(
    tokenizer: Tokenizer, ids: list[int], prompt: tuple[int, ...] = (), stop: tuple[str, ...] = ()
) -> tuple[list[str], bool]:
    """The parts that come out, the last from `flush` if no stop string ended the answer, and whether one did."""
    text = TextStream(tokenizer, prompt, stop)
    parts = []
    for token in ids:
        parts.append(text.push(token))
        if text.stopped:
            return parts, True
    parts.append(text.flush())
    return parts, text.stopped


def read(tokenizer: Tokenizer, ids: list[int], prompt: tuple[int, ...] = (), stop: tuple[str, ...] = ()) -> str:
    return "".join(stream(tokenizer, ids, prompt, stop)[0])


# Text.


@BOTH
@pytest.mark.parametrize("text", ["", "hello world", "中文字", FAMILY, "é 😀\n", "a\u0301", "  two  spaces "])
def test_the_parts_make_up_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = encode(tokenizer, text)
    assert read(tokenizer, ids) == tokenizer.decode(ids)


@BOTH
@examples(150)
@given(text=st.one_of(TEXT, ANY_TEXT))
def test_the_parts_of_any_text_make_it_up(tokenizer: Tokenizer, text: str) -> None:
    ids = encode(tokenizer, text)
    assert read(tokenizer, ids) == tokenizer.decode(ids)


@examples(200)
@given(ids=st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=40))
def test_any_tokens_of_a_byte_level_model_decode_as_a_whole(ids: list[int]) -> None:
    """Random tokens are mostly broken UTF-8; up to the number of replacement characters, text is as of all at once."""
    whole = BYTE_LEVEL.decode(ids)
    assert re.sub("�+", "�", read(BYTE_LEVEL, ids)) == re.sub("�+", "�", whole)


@BOTH
@examples(200)
@given(data=st.data())
def test_no_tokens_at_all_raise(tokenizer: Tokenizer, data: st.DataObject) -> None:
    anything = st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=30)
    ids, prompt = data.draw(anything), tuple(data.draw(anything))
    stop = tuple(data.draw(st.lists(st.sampled_from(["a", "lo", "�", " "]), max_size=2)))
    read(tokenizer, ids, prompt, stop)


@BOTH
def test_a_character_comes_when_its_last_byte_has_come(tokenizer: Tokenizer) -> None:
    parts, _ = stream(tokenizer, byte_tokens(tokenizer, "中😀".encode()))
    assert [part for part in parts if part] == ["中", "😀"]
    assert parts[2] == "中"
    assert parts[6] == "😀"


@BOTH
def test_emoji_joined_to_one_come_character_by_character_and_whole(tokenizer: Tokenizer) -> None:
    parts, _ = stream(tokenizer, byte_tokens(tokenizer, FAMILY.encode()))
    assert [part for part in parts if part] == list(FAMILY)


@BOTH
@pytest.mark.parametrize("end", [1, 2, 3])
def test_a_character_cut_off_at_the_end_shows_as_a_replacement(tokenizer: Tokenizer, end: int) -> None:
    ids = [*encode(tokenizer, "hello"), *byte_tokens(tokenizer, "😀".encode())[:end]]
    parts, _ = stream(tokenizer, ids)
    assert "".join(parts[:-1]).strip() == "hello"
    assert set(parts[-1]) == {"�"}


def test_a_broken_byte_behind_a_good_character_does_not_stop_the_stream() -> None:
    """With byte fallback, one more byte turns the whole run of bytes before it into replacement characters."""
    ids = byte_tokens(BYTE_FALLBACK, "中".encode() + b"\xe4") + encode(BYTE_FALLBACK, "a")
    assert BYTE_FALLBACK.decode(ids).startswith("����")
    assert read(BYTE_FALLBACK, ids).replace(" ", "") == "中�a"


@BOTH
def test_endless_broken_bytes_are_not_held_back_for_ever(tokenizer: Tokenizer) -> None:
    broken = byte_tokens(tokenizer, b"\xff")[0]
    text = TextStream(tokenizer)
    for _ in range(100):
        text.push(broken)
    assert len(text._known + text._pending) < 50
    out = [text.push(broken) for _ in range(100)]
    assert "�" in "".join(out)


@BOTH
def test_a_character_behind_many_broken_bytes_is_whole(tokenizer: Tokenizer) -> None:
    for count in range(40):
        ids = byte_tokens(tokenizer, b"\xff" * count + "😀".encode()) + encode(tokenizer, "a")
        assert "😀" in read(tokenizer, ids) or tokenizer is BYTE_FALLBACK
        assert read(tokenizer, ids).endswith("a")


def test_special_tokens_have_no_text_and_cost_no_memory() -> None:
    text = TextStream(BYTE_LEVEL)
    assert [text.push(2) for _ in range(200)] == [""] * 200
    assert len(text._known + text._pending) < 50
    assert "".join(text.push(token) for token in encode(BYTE_LEVEL, "hello")) == "hello"


def test_ids_beyond_the_tokenizer_have_no_text() -> None:
    ids = encode(BYTE_LEVEL, "hello")
    assert read(BYTE_LEVEL, [*ids, 99_999, *ids]) == "hellohello"


# The prompt's end.


def test_the_space_between_prompt_and_answer_is_kept() -> None:
    prompt = tuple(encode(BYTE_FALLBACK, "hello"))
    assert read(BYTE_FALLBACK, encode(BYTE_FALLBACK, "world"), prompt) == " world"


@BOTH
@pytest.mark.parametrize("prompt", ["hello", "中文", "so 😀", "�", "what is �", "�" * 10, " "])
def test_nothing_of_the_prompt_is_in_the_answer(tokenizer: Tokenizer, prompt: str) -> None:
    ids = encode(tokenizer, "a b")
    assert read(tokenizer, ids, tuple(encode(tokenizer, prompt))).strip() == "a b"


@BOTH
@examples(100)
@given(prompt=st.one_of(TEXT, ANY_TEXT), answer=TEXT)
def test_prompt_and_answer_together_decode_to_the_prompt_and_the_text(
    tokenizer: Tokenizer, prompt: str, answer: str
) -> None:
    before, after = encode(tokenizer, prompt), encode(tokenizer, answer)
    text = read(tokenizer, after, tuple(before))
    assert tokenizer.decode(before + after) in (tokenizer.decode(before) + text, tokenizer.decode(before) + " " + text)


# Stop strings.


def until_stop(parts: list[str], stop: tuple[str, ...]) -> str:
    """What of the text is to be sent: up to the stop string that is complete first, and of several the earliest."""
    text = ""
    for part in parts:
        text += part
        found = [at for at in (text.find(s) for s in stop) if at >= 0]
        if found:
            return text[: min(found)]
    return text


def test_a_stop_string_spread_over_tokens_ends_the_answer() -> None:
    ids = byte_tokens(BYTE_LEVEL, b"one END two")
    parts, stopped = stream(BYTE_LEVEL, ids, stop=("END",))
    assert stopped
    assert "".join(parts) == "one "
    assert len(parts) == len("one END"), "it ends with the token that completes the stop string"


def test_what_may_become_a_stop_string_is_held_back_and_released_when_it_does_not() -> None:
    text = TextStream(BYTE_LEVEL, stop=("END",))
    out = [text.push(token) for token in byte_tokens(BYTE_LEVEL, b"aENx")]
    assert out == ["a", "", "", "ENx"]
    assert not text.stopped


def test_only_as_much_is_held_back_as_may_still_become_a_stop_string() -> None:
    text = TextStream(BYTE_LEVEL, stop=("aab",))
    assert [text.push(token) for token in byte_tokens(BYTE_LEVEL, b"aaaa")] == ["", "", "a", "a"]
    assert text.push(byte_tokens(BYTE_LEVEL, b"b")[0]) == ""
    assert text.stopped


def test_held_back_text_is_released_at_the_end() -> None:
    assert stream(BYTE_LEVEL, byte_tokens(BYTE_LEVEL, b"aEN"), stop=("END",)) == (["a", "", "", "EN"], False)


def test_of_stop_strings_in_one_token_the_earliest_wins_not_the_first_in_the_list() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["one-two-three"])
    parts, stopped = stream(tokenizer, [tokenizer.token_to_id("one-two-three")], stop=("three", "two"))
    assert (parts, stopped) == (["one-"], True)


def test_a_stop_string_within_another_does_not_wait_for_the_longer_one() -> None:
    parts, stopped = stream(BYTE_LEVEL, byte_tokens(BYTE_LEVEL, b"xabcd"), stop=("abcd", "b"))
    assert stopped
    assert "".join(parts) == "xa"


def test_a_stop_string_of_several_byte_characters() -> None:
    parts, stopped = stream(BYTE_LEVEL, byte_tokens(BYTE_LEVEL, "好。中文😀再".encode()), stop=("文😀",))
    assert stopped
    assert "".join(parts) == "好。中"


def test_a_stop_string_completed_by_what_was_held_back_at_the_end() -> None:
    ids = byte_tokens(BYTE_LEVEL, b"a\xf0\x9f")
    parts, stopped = stream(BYTE_LEVEL, ids, stop=("�",))
    assert stopped
    assert "".join(parts) == "a"


@examples(400)
@given(
    text=st.text("abc ", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=4).map(tuple),
)
def test_the_answer_is_the_text_before_the_first_stop_string(text: str, stop: tuple[str, ...]) -> None:
    parts, stopped = stream(BYTE_LEVEL, byte_tokens(BYTE_LEVEL, text.encode()), stop=stop)
    assert "".join(parts) == until_stop(list(text), stop)
    assert stopped == any(s in text for s in stop)
    sent = ""
    for part in parts:
        sent += part
        assert not any(s in sent for s in stop), "a stop string was sent"


@BOTH
@examples(100)
@given(text=TEXT, stop=st.lists(st.sampled_from([*PIECES, "o w", "中文", "👩", "b."]), max_size=3).map(tuple))
def test_stop_strings_in_real_tokens(tokenizer: Tokenizer, text: str, stop: tuple[str, ...]) -> None:
    ids = encode(tokenizer, text)
    assert read(tokenizer, ids, stop=stop) == until_stop(stream(tokenizer, ids)[0], stop)


# Names of tokens.


def test_names_of_byte_level_tokens() -> None:
    names = TokenNames(BYTE_LEVEL)
    assert names(encode(BYTE_LEVEL, " wo")[0]) == (" wo", b" wo")
    assert names(BYTE_LEVEL.token_to_id("</s>")) == ("</s>", b"</s>")
    first = byte_tokens(BYTE_LEVEL, "中".encode())[0]
    assert names(first) == ("�", b"\xe4")


def test_names_of_byte_fallback_tokens() -> None:
    names = TokenNames(BYTE_FALLBACK)
    assert names(BYTE_FALLBACK.token_to_id("▁hello")) == (" hello", b" hello")
    assert names(BYTE_FALLBACK.token_to_id("<0xE4>")) == ("�", b"\xe4")
    assert names(BYTE_FALLBACK.token_to_id("中")) == ("中", "中".encode())


def test_an_unknown_id_has_an_empty_name() -> None:
    assert TokenNames(BYTE_LEVEL)(99_999) == ("", b"")


@examples(50)
@given(text=ANY_TEXT)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(text: str) -> None:
    names = TokenNames(BYTE_LEVEL)
    assert b"".join(names(token)[1] for token in encode(BYTE_LEVEL, text)).decode() == text
