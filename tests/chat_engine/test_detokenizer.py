from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders

from chat_engine.text.detokenizer import TextStream, TokenNames, echo_text, text_of
from tests.chat_engine.builders import byte_fallback_tokenizer, byte_level_tokenizer, examples

BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
BLANK = "\u2581"
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
    """Random tokens are mostly broken UTF-8."""
    assert read(BYTE_LEVEL, ids) == BYTE_LEVEL.decode(ids)


@BOTH
@examples(200)
@given(data=st.binary(max_size=20))
def test_any_bytes_are_replaced_as_python_does(tokenizer: Tokenizer, data: bytes) -> None:
    text = read(tokenizer, byte_tokens(tokenizer, data), tuple(encode(tokenizer, "a")))
    assert text == data.decode("utf-8", "replace")


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
def test_broken_bytes_are_not_held_back(tokenizer: Tokenizer) -> None:
    text = TextStream(tokenizer)
    assert [text.push(byte_tokens(tokenizer, b"\xff")[0]) for _ in range(100)] == ["�"] * 100


@BOTH
def test_a_character_behind_many_broken_bytes_is_whole(tokenizer: Tokenizer) -> None:
    for count in range(40):
        ids = byte_tokens(tokenizer, b"\xff" * count + "😀".encode()) + encode(tokenizer, "a")
        assert read(tokenizer, ids).replace(" ", "") == "�" * count + "😀a"


@pytest.mark.parametrize("stop", [(), ("END",)])
def test_special_tokens_have_no_text_and_cost_no_memory(stop: tuple[str, ...]) -> None:
    text = TextStream(BYTE_LEVEL, stop=stop)
    before = len(pickle.dumps(state_of(text)))
    assert [text.push(2) for _ in range(200)] == [""] * 200
    assert len(pickle.dumps(state_of(text))) < before + 50
    assert "".join(text.push(token) for token in encode(BYTE_LEVEL, "hello")) == "hello"


@BOTH
@pytest.mark.parametrize("stop", [(), ("aaab", "never")])
def test_a_token_costs_the_same_however_long_the_answer_is(tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
    text, ids = TextStream(tokenizer, stop=stop), [*encode(tokenizer, "a 中a"), 2]
    sizes = []
    for _ in range(100):
        for token in ids:
            text.push(token)
        sizes.append(len(pickle.dumps(state_of(text))))
    assert max(sizes[2:]) <= sizes[2] + 8, "nothing is kept but a bounded end"


def state_of(text: TextStream) -> list[object]:
    """All that an answer keeps, but the tokenizer and the stop strings."""
    decoder = {k: v for k, v in vars(text._decoder).items() if k not in ("_texts", "_utf8", "_strips")}
    strips = [vars(strip) for strip in text._decoder._strips]
    stops = {k: v for k, v in vars(text._stops).items() if k != "_automaton"} if text._stops else None
    return [decoder, text._decoder._utf8.getstate(), strips, stops, text.length]


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


PARTS_OF_CHARACTER = pytest.mark.parametrize("cut", [1, 2, 3])


@BOTH
@PARTS_OF_CHARACTER
def test_a_character_that_the_prompt_begins_and_the_answer_completes_is_the_answers(
    tokenizer: Tokenizer, cut: int
) -> None:
    ids = [*encode(tokenizer, "a"), *byte_tokens(tokenizer, "🎉🎉".encode())]
    prompt, answer = tuple(ids[: cut - 8]), ids[cut - 8 :]
    assert read(tokenizer, answer, prompt) == "🎉🎉"[cut == 4 :]
    assert echo_text(tokenizer, prompt) == "a"


@BOTH
def test_byte_tokens_behind_a_prompt_that_ends_with_byte_tokens(tokenizer: Tokenizer) -> None:
    party = byte_tokens(tokenizer, "🎉".encode())
    parts, _ = stream(tokenizer, party * 2, tuple(party * 2))
    assert [part for part in parts if part] == ["🎉", "🎉"]


@BOTH
@PARTS_OF_CHARACTER
@pytest.mark.parametrize("answer", ["a", "中", ""])
def test_a_character_that_nothing_completes_shows_only_behind_the_prompts_text(
    tokenizer: Tokenizer, cut: int, answer: str
) -> None:
    a = encode(tokenizer, "a")
    prompt, ids = (*a, *byte_tokens(tokenizer, "🎉".encode()[:cut])), byte_tokens(tokenizer, answer.encode())
    assert read(tokenizer, ids, prompt) == answer
    behind_it = TextStream(tokenizer, prompt, echo=True)
    assert "".join(map(behind_it.push, ids)) + behind_it.flush() == "�" + answer
    assert echo_text(tokenizer, prompt) == "a"
    assert text_of(tokenizer, prompt) == "a�"


def test_a_character_that_does_not_show_is_not_nothing() -> None:
    """What is cut off the beginning of a text is not cut off that of an answer."""
    prompt = tuple(byte_tokens(BYTE_FALLBACK, b"\xf0"))
    assert read(BYTE_FALLBACK, encode(BYTE_FALLBACK, "hello"), prompt) == " hello"


@BOTH
def test_a_replacement_character_may_be_what_the_answer_completes(tokenizer: Tokenizer) -> None:
    raw = byte_tokens(tokenizer, "�".encode())
    assert read(tokenizer, raw[2:], tuple(raw[:2])) == "�"


# Special tokens.


def test_special_tokens_show_if_asked_for() -> None:
    text = TextStream(BYTE_LEVEL, skip_special_tokens=False)
    assert "".join(map(text.push, [*encode(BYTE_LEVEL, "hi"), 2])) == "hi</s>"


def test_a_stop_string_that_is_a_special_token_ends_the_answer() -> None:
    ids = [*encode(BYTE_LEVEL, "ab"), 1, *encode(BYTE_LEVEL, "c")]
    assert stream(BYTE_LEVEL, ids, stop=("<s>",)) == (["a", "b", ""], True)


def test_a_stop_string_that_contains_a_special_token_ends_the_answer() -> None:
    ids = [*encode(BYTE_LEVEL, "ab\n"), 1, *encode(BYTE_LEVEL, "cd")]
    parts, stopped = stream(BYTE_LEVEL, ids, stop=("\n<s>c",))
    assert (parts, stopped) == (["a", "b", "", "", ""], True)


def test_what_was_held_back_for_a_special_token_is_released_without_it() -> None:
    ids = [*encode(BYTE_LEVEL, "ab\n"), 1, *encode(BYTE_LEVEL, "dc")]
    parts, stopped = stream(BYTE_LEVEL, ids, stop=("\n<s>c",))
    assert (parts, stopped) == (["a", "b", "", "", "\nd", "c", ""], False)


def test_a_stop_string_that_shows_ends_the_answer_whatever_is_hidden_in_it() -> None:
    ids = [*encode(BYTE_LEVEL, "xa"), 1, *encode(BYTE_LEVEL, "bc")]
    parts, stopped = stream(BYTE_LEVEL, ids, stop=("ab",))
    assert (parts, stopped) == (["x", "", "", ""], True)


def test_hidden_text_alone_is_never_released() -> None:
    assert stream(BYTE_LEVEL, [1, 1, 1], stop=("<s><s>x",)) == (["", "", "", ""], False)


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


def test_tokens_before_the_minimum_complete_no_stop_string() -> None:
    text = TextStream(BYTE_LEVEL, stop=("b",))
    out = [text.push(token, may_stop=count > 3) for count, token in enumerate(encode(BYTE_LEVEL, "abbab"), 1)]
    assert out == ["a", "b", "b", "a", ""]
    assert text.stopped


def test_a_stop_string_that_begins_before_the_minimum_is_completed_behind_it() -> None:
    text = TextStream(BYTE_LEVEL, stop=("END",))
    out = [text.push(token, may_stop=count > 2) for count, token in enumerate(byte_tokens(BYTE_LEVEL, b"xEND"), 1)]
    assert out == ["x", "", "", ""]
    assert text.stopped


def test_what_completed_no_stop_string_may_begin_a_longer_one() -> None:
    text = TextStream(BYTE_LEVEL, stop=("ab", "abc"))
    out = [text.push(token, may_stop=count > 2) for count, token in enumerate(encode(BYTE_LEVEL, "abc"), 1)]
    assert out == ["", "", ""]
    assert text.stopped


def test_what_is_left_at_the_end_completes_a_stop_string_only_if_the_last_token_might() -> None:
    for may_stop, left in ((True, ""), (False, "�")):
        text = TextStream(BYTE_LEVEL, stop=("�",))
        assert text.push(byte_tokens(BYTE_LEVEL, b"\xf0")[0], may_stop) == ""
        assert text.flush() == left
        assert text.stopped == may_stop


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


# Added tokens.


def deepseek(*, added: tuple[str, ...] = ("ö", "é ", "Ġx"), special: str = "<｜end▁of▁sentence｜>") -> Tokenizer:
    """Byte-level, with tokens added whose characters stand for bytes elsewhere."""
    tokenizer = byte_level_tokenizer([special])
    tokenizer.add_tokens(list(added))
    return tokenizer


def test_added_tokens_of_a_byte_level_tokenizer_are_their_own_characters() -> None:
    tokenizer = deepseek()
    text = "schön, né Ġx<｜end▁of▁sentence｜>"
    ids = encode(tokenizer, text)
    assert {"ö", "é ", "Ġx"} < set(map(tokenizer.id_to_token, ids))
    assert text_of(tokenizer, ids) == text
    assert read(tokenizer, ids) == "schön, né Ġx"
    names = TokenNames(tokenizer)
    assert [name for name, _ in map(names, ids)] == [*"sch", "ö", *"n,", " ", "n", "é ", "Ġx", "<｜end▁of▁sentence｜>"]
    assert b"".join(raw for _, raw in map(names, ids)).decode() == text


def test_the_mark_of_a_blank_is_one_only_in_ordinary_tokens() -> None:
    tokenizer = byte_fallback_tokenizer()
    tokenizer.add_special_tokens(["<｜end▁of▁sentence｜>"])
    tokenizer.add_tokens(["x▁y"])
    names = TokenNames(tokenizer)
    for name in ("<｜end▁of▁sentence｜>", "x▁y"):
        assert names(tokenizer.token_to_id(name)) == (name, name.encode())
    assert names(tokenizer.token_to_id("▁hello")) == (" hello", b" hello")


def test_blanks_among_the_added_tokens_are_blanks_if_the_vocabulary_has_them() -> None:
    """As in Gemma: the model makes them of blanks."""
    tokenizer = byte_fallback_tokenizer()
    tokenizer.add_tokens([AddedToken("▁", normalized=False, special=False)])
    assert read(tokenizer, encode(tokenizer, "a  a")) == "a  a"


# Decoders of other kinds.


def unknown_kind() -> Tokenizer:
    """What matches at the beginning of the whole text cannot be done token by token."""
    tokenizer = byte_fallback_tokenizer()
    start = [decoders.Replace(BLANK, " "), decoders.Replace("中", "ZH"), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*start, decoders.Replace(Regex("^ "), "")])
    return tokenizer


@pytest.mark.parametrize("text", ["", "hello world", "中文字", "é 😀\n", "  two  spaces "])
def test_decoders_of_unknown_kinds_are_left_to_tokenizers(text: str) -> None:
    tokenizer = unknown_kind()
    ids = encode(tokenizer, text)
    assert text_of(tokenizer, ids) == tokenizer.decode(ids)
    assert read(tokenizer, ids) == tokenizer.decode(ids)


def test_behind_a_prompt_with_decoders_of_unknown_kinds() -> None:
    ids = encode(unknown_kind(), "hello 中")
    assert read(unknown_kind(), ids) == "hello ZH"
    assert read(unknown_kind(), ids, tuple(encode(unknown_kind(), "a"))) == " hello ZH"


@examples(100)
@given(ids=st.lists(st.integers(0, 275), max_size=30), prompt=st.lists(st.integers(0, 275), max_size=9))
def test_any_ids_with_decoders_of_unknown_kinds(ids: list[int], prompt: list[int]) -> None:
    read(unknown_kind(), ids, tuple(prompt), ("a",))


def test_broken_bytes_with_decoders_of_unknown_kinds_are_not_held_back_for_ever() -> None:
    text = TextStream(unknown_kind())
    out = [text.push(BYTE_FALLBACK.token_to_id("<0xFF>")) for _ in range(100)]
    assert "�" in "".join(out[:20])
    assert "�" in "".join(out[-20:])


def test_names_with_decoders_of_unknown_kinds() -> None:
    names = TokenNames(unknown_kind())
    assert names(BYTE_FALLBACK.token_to_id("中")) == ("ZH", b"ZH")
    assert names(2) == ("</s>", b"</s>")


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
