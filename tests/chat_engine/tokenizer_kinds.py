"""One tiny tokenizer of each kind that checkpoints have, each with a reference: what its tokens decode to.

The references are written from what the kinds mean, for a whole list of tokens at once; they share nothing with the
code they check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = ("<unk>", "<s>", "</s>")
TRAINING = [
    "hello world, the quick brown fox doesn't jump. don't! what's it, 0123456789?",
    "def f(x):\n    return x  # two  spaces\n\n\tand tabs",
    "中文字 schön déjà été 😀🎉 привет",
] * 8
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
BLANK = "\u2581"

Token = tuple[str, bool]
"""A token's name, and whether it is an added token that stands for its own characters."""


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer.

    Attributes:
        reference: what visible tokens decode to.
        own: names of added tokens that are ordinary tokens of the vocabulary, too, and decode as such.
        lossless: whether texts come back from their tokens as they were.
    """

    name: str
    tokenizer: Tokenizer
    reference: Callable[[list[Token]], str]
    ordinary: frozenset[str] = frozenset()
    lossless: bool = False

    def decode(self, ids: Iterable[int], skip_special_tokens: bool) -> str:
        """The reference."""
        added = self.tokenizer.get_added_tokens_decoder()
        tokens = []
        for token_id in ids:
            name = self.tokenizer.id_to_token(token_id)
            special = token_id in added and added[token_id].special
            if name is not None and not (special and skip_special_tokens):
                tokens.append((name, token_id in added and name not in self.ordinary))
        return self.reference(tokens)


def kinds() -> list[Kind]:
    """All of them."""
    return [
        Kind("gpt2", _byte_level(), _read_byte_level, lossless=True),
        Kind("deepseek", _deepseek(), _read_byte_level, lossless=True),
        Kind("llama3", _llama_3(), _read_byte_level, lossless=True),
        Kind("llama2", _llama_2(), _read_llama_2, lossless=True),
        Kind("llama2-added", _llama_2(["[PAD]", "a▁b", "<0x41>x", " "], ["<｜end▁｜>"]), _read_llama_2),
        Kind("gemma", _gemma(), _read_gemma, frozenset({"▁▁", "▁▁▁", "\n"}), lossless=True),
        Kind("mistral", _metaspace_first(), _read_metaspace_first),
        Kind("t5", _unigram("always"), _read_metaspace),
        Kind("unigram-no-prefix", _unigram("never"), _read_metaspace_never),
        Kind("bert", _word_piece(), _read_word_piece),
        Kind("word-level", _word_level(), _read_words),
        Kind("clip", _word_ends(), _read_word_ends),
        Kind("ctc", _ctc(), _read_ctc),
        Kind("both-ends", _both_ends(), _read_both_ends),
    ]


def _special(tokenizer: Tokenizer, names: Iterable[str] = SPECIAL) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def _vocabulary(names: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(dict.fromkeys(names))}


# Byte-level BPE.


def _byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return _special(tokenizer)


def _llama_3() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _special(_byte_level(pre_tokenizers.Sequence([split, byte_level])), ["<|begin_of_text|>", "<|eot_id|>"])


def _deepseek() -> Tokenizer:
    """Characters that stand for bytes no text has are missing in the vocabulary, and were added as tokens later."""
    late = ["ö", "õ", "ü", "÷", "À"]
    names = [name for name in sorted(pre_tokenizers.ByteLevel.alphabet()) if name not in late]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("ä", "¸"), ("ä¸", "Ń"), ("Ã", "©")]
    names += ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(names), merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([*late, "  ", "Ġx", "中"])
    return _special(tokenizer, ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "é"])


def _read_byte_level(tokens: list[Token]) -> str:
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    raw = b"".join(name.encode() if own else bytes(byte_of[char] for char in name) for name, own in tokens)
    return raw.decode("utf-8", "replace")


# SentencePiece's manner.


def _llama_2(added: Iterable[str] = (), special: Iterable[str] = ()) -> Tokenizer:
    pieces = [BLANK, *"abdefhlnortwxy.,'!?0123(:)", "中", "he", "ll", "▁w", "▁wo", "▁▁", "▁the"]
    merges = [("h", "e"), ("l", "l"), ("▁", "w"), ("▁w", "o"), ("▁", "▁"), ("▁", "t"), ("▁t", "he")]
    names = [*SPECIAL, *BYTES, *pieces, "▁t"]
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(names), merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_tokens(list(added))
    return _special(tokenizer, [*SPECIAL, *special])


def _gemma() -> Tokenizer:
    """Blanks stand among its added tokens, which are tokens of the vocabulary all the same; nothing is cut off."""
    pieces = [BLANK, "▁▁", "▁▁▁", "\n", *"abdefhlnortwxy.,'!?0123(:)", "中", "he", "ll", "▁w"]
    merges = [("h", "e"), ("l", "l"), ("▁", "w"), ("▁", "▁"), ("▁▁", "▁")]
    names = [*SPECIAL, *BYTES, *pieces]
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(names), merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("▁▁", "▁▁▁", "\n")])
    return _special(tokenizer, [*SPECIAL, "<start_of_turn>", "<end▁of_turn>"])


def _metaspace_first() -> Tokenizer:
    pieces = [BLANK, *"abdefhlnortwxy.,'!?0123(:)", "中", "▁hello", "▁w", "ld"]
    names = [*SPECIAL, *BYTES, *pieces]
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(names), merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    tokenizer.add_tokens(["a▁b"])
    return _special(tokenizer)


def _unigram(scheme: str) -> Tokenizer:
    pieces = [*SPECIAL, BLANK, *"abdefhlnortwxy.,'!?0123(:)", "中", "文", "é", "😀", "▁hello", "▁w", "or", "ld", "▁▁"]
    tokenizer = Tokenizer(models.Unigram([(name, -float(index)) for index, name in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.add_tokens(["a▁b"])
    return _special(tokenizer, [*SPECIAL, "<extra▁id>"])


def _read_pieces(tokens: list[Token]) -> str:
    raw = b""
    for name, own in tokens:
        if not own and re.fullmatch("<0x[0-9A-F]{2}>", name):
            raw += bytes.fromhex(name[3:5])
        else:
            raw += (name if own else name.replace(BLANK, " ")).encode()
    return raw.decode("utf-8", "replace")


def _read_gemma(tokens: list[Token]) -> str:
    return _read_pieces(tokens)


def _read_llama_2(tokens: list[Token]) -> str:
    return _read_pieces(tokens).removeprefix(" ")


def _read_metaspace_first(tokens: list[Token]) -> str:
    if tokens and not tokens[0][1]:
        tokens = [(tokens[0][0].replace(BLANK, ""), False), *tokens[1:]]
    return _read_pieces(tokens)


def _read_metaspace_never(tokens: list[Token]) -> str:
    return "".join(name if own else name.replace(BLANK, " ") for name, own in tokens)


def _read_metaspace(tokens: list[Token]) -> str:
    return "".join(
        name if own else name.replace(BLANK, " " if index else "") for index, (name, own) in enumerate(tokens)
    )


# Words.


def _word_piece() -> Tokenizer:
    letters = "abdefhlnortwxy.,'!?0123(:)"
    names = ["<unk>", "<s>", "</s>", *letters, *(f"##{char}" for char in letters), "hello", "wor", "##ld", "do", "n't"]
    tokenizer = Tokenizer(models.WordPiece(_vocabulary(names), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_tokens(["it 's", "..."])
    return _special(tokenizer)


def _read_word_piece(tokens: list[Token]) -> str:
    text = ""
    for index, (name, own) in enumerate(tokens):
        if index and name.startswith("##") and not own:
            text += name[2:]
        elif index and name not in (".", ",", "!", "?", "n't", "..."):  # cleaned up: no blank before these
            text += " " + name
        else:
            text += name
    return text


def _word_level() -> Tokenizer:
    words = ["hello", "world", ".", ",", "!", "?", "a", "b", "the", "fox", "it", "'", "s", "中"]
    tokenizer = Tokenizer(models.WordLevel(_vocabulary([*SPECIAL, *words]), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens(["a▁b"])
    return _special(tokenizer)


def _read_words(tokens: list[Token]) -> str:
    return " ".join(name for name, _ in tokens)


def _word_ends() -> Tokenizer:
    letters = "abdefhlnortwxy.,'!?0123(:)"
    names = [*SPECIAL, *letters, *(f"{char}</w>" for char in letters), "he", "ll", "llo</w>", "</w>"]
    merges = [("h", "e"), ("l", "l"), ("ll", "o</w>")]
    tokenizer = Tokenizer(
        models.BPE(vocab=_vocabulary(names), merges=merges, unk_token="<unk>", end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    tokenizer.add_tokens(["x</w>y"])
    return _special(tokenizer)


def _read_word_ends(tokens: list[Token]) -> str:
    text = "".join(name if own else name.replace("</w>", "\0") for name, own in tokens[:-1]).replace("\0", " ")
    return text + "".join(name if own else name.replace("</w>", "") for name, own in tokens[-1:])


# Others.


def _ctc() -> Tokenizer:
    names = ["<unk>", "<s>", "</s>", "<pad>", "|", *"abdefhlo.'"]
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(names), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.CTC("<pad>", "|", cleanup=True)
    tokenizer.add_tokens(["|x"])
    return _special(tokenizer, ["<s>", "</s>", "<pad>"])


def _read_ctc(tokens: list[Token]) -> str:
    text = ""
    for before, (name, _) in zip([None, *tokens], tokens, strict=False):
        if before is None or before[0] != name:
            text += {"<pad>": "", "|": " "}.get(name, name)
    return text


def _both_ends() -> Tokenizer:
    """Not of any known checkpoint: characters cut off at both ends."""
    names = [*SPECIAL, *BYTES, BLANK, "a", "b", "▁▁a", "a▁", "中"]
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(names), merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(BLANK, " "), decoders.Strip(" ", 2, 3)]
    )
    return _special(tokenizer)


def _read_both_ends(tokens: list[Token]) -> str:
    text = _read_pieces(tokens)
    text = text[min(2, len(text) - len(text.lstrip(" "))) :]
    return text[: len(text) - min(3, len(text) - len(text.rstrip(" ")))]
