"""Ids to text for every kind of tokenizer: however the text is cut, it is that of all tokens at once.

`DETOKENIZER_TEXTS=70000 pytest tests/chat_engine/test_decoders.py` tries that many texts and id sequences of each kind.
"""

from __future__ import annotations

import os
from itertools import groupby
from random import Random

import pytest

from chat_engine.text.detokenizer import TextStream, TokenNames, echo_text, text_of
from tests.chat_engine.tokenizer_kinds import BLANK, BYTES, Kind, kinds

COUNT = int(os.environ.get("DETOKENIZER_TEXTS", "150"))
pytestmark = [pytest.mark.timeout(0)] if "DETOKENIZER_TEXTS" in os.environ else []  # that takes as long as it takes
KINDS = {kind.name: kind for kind in kinds()}
EACH_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
WORDS = ["hello", " world", " ", "  ", "\n", *"ab.|", " ,", " doesn't", " do not", "the", "ll", "it 's", "<s>"]
STRANGE = ["schön", *"é😀ÿĠÀ𝄞", "中文", "привет", "👩\u200d👧", "e\u0301", "\ufffd", "\x00", "\u0378", "\u202e"]


def random_text(dice: Random) -> str:
    """Words, rare characters, and any at all; no U+2581, which SentencePiece cannot tell from a blank."""
    any_character = chr(dice.choice([dice.randrange(0x80), dice.randrange(0x2000), dice.randrange(0xE000, 0x110000)]))
    pool = [*WORDS, *STRANGE, any_character.replace(BLANK, "")]
    return "".join(dice.choices(pool, k=dice.randrange(12)))


def random_ids(kind: Kind, dice: Random) -> list[int]:
    """Any ids, some beyond the vocabulary; in places the bytes of a character, whole or not."""
    size = kind.tokenizer.get_vocab_size() + 2
    ids = [dice.randrange(size) for _ in range(dice.randrange(14))]
    for _ in range(dice.randrange(3)):
        raw = dice.choice(STRANGE).encode()[: dice.randrange(1, 9)]
        names = [BYTES[byte] for byte in raw] if kind.tokenizer.token_to_id(BYTES[0]) else list(raw.decode("latin-1"))
        found = [kind.tokenizer.token_to_id(name) for name in names]
        at = dice.randrange(len(ids) + 1)
        ids[at:at] = [token_id for token_id in found if token_id is not None]
    return ids


def split(ids: list[int], dice: Random) -> tuple[tuple[int, ...], list[int]]:
    """A prompt and an answer."""
    at = dice.randrange(len(ids) + 1)
    return tuple(ids[:at]), ids[at:]


def streamed(stream: TextStream, ids: list[int]) -> str:
    """All of the answer."""
    return "".join([stream.push(token_id) for token_id in ids]) + stream.flush()


def dice_of(kind: Kind, test: str) -> Random:
    return Random(f"{kind.name} {test}")


@EACH_KIND
def test_texts(kind: Kind) -> None:
    """The ids of real texts decode as `tokenizers` has it, but where added tokens are concerned."""
    dice, tokenizer = dice_of(kind, "texts"), kind.tokenizer
    added = tokenizer.get_added_tokens_decoder()
    own = {i for i, t in added.items() if t.content not in kind.ordinary and not (t.special and t.content.isascii())}
    compared = 0
    for _ in range(COUNT):
        text = random_text(dice)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        whole = text_of(tokenizer, ids)
        assert whole == kind.decode(ids, skip_special_tokens=False)
        if kind.lossless and not (kind.name == "llama2" and "<s>" in text):  # it puts a blank behind special tokens
            assert whole == text
        if kind.name != "both-ends" and not own.intersection(ids):  # `tokenizers` panics at a text of blanks alone
            compared += 1
            assert whole == tokenizer.decode(ids, skip_special_tokens=False)
        prompt, answer = split(ids, dice)
        stream = TextStream(tokenizer, prompt, skip_special_tokens=False, echo=True)
        assert echo_text(tokenizer, prompt) + streamed(stream, answer) == whole
    assert compared or kind.name == "both-ends"


@EACH_KIND
@pytest.mark.parametrize("skip_special_tokens", [True, False], ids=["skip", "show"])
def test_any_ids(kind: Kind, skip_special_tokens: bool) -> None:
    dice, tokenizer = dice_of(kind, "ids"), kind.tokenizer
    for _ in range(COUNT):
        ids = random_ids(kind, dice)
        whole = kind.decode(ids, skip_special_tokens)
        assert text_of(tokenizer, ids, skip_special_tokens=skip_special_tokens) == whole
        prompt, answer = split(ids, dice)
        before = echo_text(tokenizer, prompt, skip_special_tokens=skip_special_tokens)
        with_echo = TextStream(tokenizer, prompt, skip_special_tokens=skip_special_tokens, echo=True)
        after = streamed(with_echo, answer)
        assert before + after == whole
        assert with_echo.length == len(after)
        alone = streamed(TextStream(tokenizer, prompt, skip_special_tokens=skip_special_tokens), answer)
        incomplete = kind.decode(prompt, skip_special_tokens).removeprefix(before)
        assert alone in (after, after.removeprefix(incomplete)), "of the prompt nothing shows unless it is completed"


@EACH_KIND
def test_a_long_prompt_is_as_one_that_was_read_whole(kind: Kind) -> None:
    """Of a prompt only the ends are looked at."""
    dice, tokenizer = dice_of(kind, "long prompts"), kind.tokenizer
    for _ in range(COUNT // 5):
        prompt = tuple(token_id for _ in range(8) for token_id in random_ids(kind, dice))
        answer = random_ids(kind, dice)
        before = echo_text(tokenizer, prompt, skip_special_tokens=True)
        after = streamed(TextStream(tokenizer, prompt, echo=True), answer)
        assert before + after == kind.decode([*prompt, *answer], skip_special_tokens=True)


@EACH_KIND
def test_names_are_what_tokens_add_to_a_text(kind: Kind) -> None:
    names, dice = TokenNames(kind.tokenizer), dice_of(kind, "names")
    for _ in range(COUNT // 5):
        between = kind.tokenizer.token_to_id("a")
        ids = [between, *random_ids(kind, dice), between]
        if kind.name == "ctc":  # where a token that repeats the one before it has a name, but no text
            ids = [token_id for token_id, _ in groupby(i for i in ids if names(i)[1])]
        text = b"a" + b"".join(names(token_id)[1] for token_id in ids[1:])
        assert text.decode("utf-8", "replace") == kind.decode(ids, skip_special_tokens=False)


# Stop strings, found by brute force.


class Found:
    """What should come out: stop strings are looked for in the whole text, as it is shown and with special tokens."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = stop
        self.shown = ""
        self.all = ""
        self.shown_before: list[int] = []  # for each character of all, how many are shown before it
        self.cut: int | None = None

    def add(self, text: str, hidden: bool, may_stop: bool) -> None:
        shown, all_ = len(self.shown), len(self.all)
        for char in text:
            self.shown_before.append(len(self.shown))
            self.all += char
            self.shown += "" if hidden else char
        begins = [
            *self._begins(self.shown, shown),
            *(self.shown_before[at] for at in self._begins(self.all, all_)),
        ]
        if may_stop and begins:
            self.cut = min(begins)

    def _begins(self, text: str, before: int) -> list[int]:
        """Where the stop strings begin that end behind a position."""
        return [
            at
            for stop in self.stop
            for at in range(len(text) - len(stop) + 1)
            if text.startswith(stop, at) and at + len(stop) > before
        ]

    @property
    def final(self) -> str:
        """What cannot become part of a stop string any more."""
        if self.cut is not None:
            return self.shown[: self.cut]
        ends = [len(self.shown)]
        for stop in self.stop:
            for length in range(1, len(stop)):
                if self.shown.endswith(stop[:length]):
                    ends.append(len(self.shown) - length)
                if self.all.endswith(stop[:length]):
                    ends.append(self.shown_before[len(self.all) - length])
        return self.shown[: min(ends)]


def random_stop(shown: str, dice: Random) -> tuple[str, ...]:
    """Parts of the text, and such that nearly are."""
    stop = []
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(shown) + 1)
        part = shown[at : at + dice.randrange(1, 8)]
        stop.append(dice.choice([part, part + "x", part[:3] + "</s>", "</s>" + part[:2], "s>", part[1:]]))
    return tuple(filter(None, stop)) or ("</s>",)


@EACH_KIND
@pytest.mark.parametrize("skip_special_tokens", [True, False], ids=["skip", "show"])
def test_stop_strings(kind: Kind, skip_special_tokens: bool) -> None:
    dice, tokenizer, stopped = dice_of(kind, "stop"), kind.tokenizer, 0
    special = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    hidden = special if skip_special_tokens else {}
    for _ in range(COUNT):
        ids = random_ids(kind, dice)
        prompt, answer = split(ids, dice)
        stop = random_stop(text_of(tokenizer, ids, skip_special_tokens=dice.random() < 0.5), dice)
        minimum = dice.choice([0, 0, dice.randrange(10)])
        found = Found(stop)
        plain = TextStream(tokenizer, prompt, skip_special_tokens=skip_special_tokens)
        stream = TextStream(tokenizer, prompt, stop, skip_special_tokens=skip_special_tokens)
        text = ""
        for count, token_id in enumerate(answer, 1):
            may_stop = count > minimum
            found.add(hidden.get(token_id) or plain.push(token_id), token_id in hidden, may_stop)
            text += stream.push(token_id, may_stop)
            assert text == found.final
            assert stream.stopped == (found.cut is not None)
            if stream.stopped:
                break
        else:
            found.add(plain.flush(), hidden=False, may_stop=len(answer) > minimum)
            text += stream.flush()
            assert stream.stopped == (found.cut is not None)
            assert text == (found.final if stream.stopped else found.shown)
        stopped += stream.stopped
    assert stopped
