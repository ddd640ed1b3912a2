"""Small tokenizers of the families that chat models use, each with its manner of blanks, bytes and special tokens."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["the quick brown fox jumps over the lazy dog", "what is this? it is a test.", "你好 世界", "x = f(1, 2)\n"] * 8
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _specials(names: tuple[str, ...], **flags: bool) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False, **flags) for name in names]


def _byte_level(pre: pre_tokenizers.PreTokenizer, specials: list[AddedToken]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(specials)
    return tokenizer


def gpt2() -> Tokenizer:
    """Also Qwen's manner of special tokens."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), _specials(CHATML))


def llama3() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(_GPT4), "isolated")
    pre = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    names = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = _byte_level(pre, _specials(names))
    begin = tokenizer.token_to_id(names[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    return tokenizer


def deepseek() -> Tokenizer:
    """Letters among the added tokens, and special tokens that are written with U+2581."""
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), [])
    tokenizer.add_special_tokens(_specials(("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>")))
    tokenizer.add_tokens([AddedToken(letter, normalized=True) for letter in "õöü"])
    return tokenizer


def _sentencepiece(scheme: str, **parts: object) -> Tokenizer:
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    names += [*(chr(code) for code in range(33, 127)), *"你好世界éü"]
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e"), ("i", "s"), ("\u2581", "a")]
    names += ["".join(pair) for pair in merges]
    model = models.BPE(
        {n: i for i, n in enumerate(names)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    if scheme != "none":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama2() -> Tokenizer:
    tokenizer = _sentencepiece(
        "prepend",
        normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
        decoder=decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
    tokenizer.add_special_tokens(_specials(("<unk>", "<s>", "</s>")))
    return tokenizer


def mistral() -> Tokenizer:
    """A blank before the very first word only."""
    tokenizer = _sentencepiece(
        "first",
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoder=decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
    tokenizer.add_special_tokens(_specials(("<unk>", "<s>", "</s>", "[INST]", "[/INST]")))
    return tokenizer


def gemma() -> Tokenizer:
    """Its line breaks are added tokens, too."""
    tokenizer = _sentencepiece(
        "none",
        normalizer=normalizers.Replace(" ", "\u2581"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        decoder=decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )
    tokenizer.add_special_tokens(_specials(("<bos>", "<eos>")))
    # Not marked as special, as in several published files.
    turns = [AddedToken(name, normalized=False) for name in ("<start_of_turn>", "<end_of_turn>", "\n", "\n\n")]
    tokenizer.add_tokens(turns)
    return tokenizer


def unigram() -> Tokenizer:
    """As in T5 and XLM-R."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|user|>", special=True, normalized=False, rstrip=True)])
    return tokenizer


def wordpiece() -> Tokenizer:
    """As in BERT."""
    words = ["[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz0123456789<>[]|/_?.,=()你好世界"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"] + ["the", "quick", "##ing", "is"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(_specials(("[UNK]", "[CLS]", "[SEP]")))
    return tokenizer


def stripping() -> Tokenizer:
    """Special tokens that take the blanks around them along, as in Phi-3."""
    tokenizer = llama2()
    tokenizer.add_special_tokens(_specials(("<|user|>", "<|end|>"), rstrip=True))
    tokenizer.add_special_tokens(_specials(("<mask>",), lstrip=True))
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    builder.__name__: builder
    for builder in (gpt2, llama3, deepseek, llama2, mistral, gemma, unigram, wordpiece, stripping)
}
