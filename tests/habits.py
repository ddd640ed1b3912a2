"""Tiny checkpoints, each with one habit of published ones. Their models say a fixed token after each token."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers as hf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
INST = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
TURN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT = 512
_CODE = [
    "def f(x):\n    return x\n\n\nclass A:\n        pass\n(hello) (world)\n",
    "for i in range(10):\n    print(i)\n",
]
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(specials: tuple[str, ...] = TURN_TOKENS) -> Tokenizer:
    """A token for each byte and nothing else, so that every text can be foreseen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return tokenizer


def byte_fallback(*more: str) -> Tokenizer:
    """As in Llama 2."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    names += [chr(code) for code in range(33, 127)]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens(list(more))
    return tokenizer


def saying(vocab: int, after: Mapping[int, int], otherwise: int, **config: object) -> hf.LlamaForCausalLM:
    """A model that says `after[t]` after the token `t`, and `otherwise` after all others."""
    width = -(-vocab // 16) * 16
    sizes = {
        "vocab_size": vocab, "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": width // 16, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": CONTEXT, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**sizes, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, :vocab] = torch.eye(vocab)
        for token in range(vocab):
            model.lm_head.weight[after.get(token, otherwise), token] = 1
    return model


def save(
    folder: Path,
    model: hf.PreTrainedModel,
    tokenizer: Tokenizer,
    template: str | None,
    generation: dict[str, object] | None = None,
    **tokenizer_config: object,
) -> Path:
    """The files of a checkpoint."""
    model.save_pretrained(folder)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **tokenizer_config}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return folder


def a_pad_token_without_an_embedding(folder: Path) -> Path:
    tokenizer = byte_fallback("[PAD]")
    size = tokenizer.get_vocab_size() - 1
    x = tokenizer.token_to_id("x")
    model = saying(size, {}, x, eos_token_id=2)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    return save(folder, model, tokenizer, INST, **names)


def an_end_without_an_embedding(folder: Path) -> Path:
    tokenizer = byte_fallback("<|im_end|>")
    size = tokenizer.get_vocab_size() - 1
    model = saying(size, {tokenizer.token_to_id("x"): 2}, tokenizer.token_to_id("x"), eos_token_id=[2, size])
    return save(folder, model, tokenizer, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def an_end_that_only_the_tokenizer_knows(folder: Path) -> Path:
    """It says `ab`, then the end of the turn, and would run on with `u`."""
    tokenizer = byte_level()
    token = tokenizer.token_to_id
    newline = tokenizer.encode("\n").ids[-1]
    order = [newline, token("a"), token("b"), token("<|im_end|>"), token("<|im_start|>"), token("u"), token("u")]
    model = saying(
        tokenizer.get_vocab_size(), dict(itertools.pairwise(order)), token("<|endoftext|>"),
        eos_token_id=token("<|endoftext|>"),
    )  # fmt: skip
    return save(
        folder, model, tokenizer, CHATML, {"eos_token_id": token("<|endoftext|>")}, eos_token="<|im_end|>"
    )  # fmt: skip


def yarn(folder: Path) -> Path:
    tokenizer = byte_level()
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT, "rope_theta": 10000.0}
    model = saying(tokenizer.get_vocab_size(), {}, tokenizer.token_to_id("a"), rope_parameters=rope)
    return save(folder, model, tokenizer, CHATML, eos_token="<|im_end|>")


def a_template_of_parts(folder: Path) -> Path:
    tokenizer = byte_level()
    template = CHATML.replace(
        "{{ m.content }}", "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
    )
    model = saying(tokenizer.get_vocab_size(), {}, tokenizer.token_to_id("a"))
    return save(folder, model, tokenizer, template, eos_token="<|im_end|>")


def letters_among_the_added_tokens(folder: Path) -> Path:
    """As in DeepSeek: it says `schön`, whose ö is an added token, and special tokens are written with U+2581."""
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    described = json.loads(byte_level((begin, end)).to_str())
    late = ["õ", "ö", "ü"]
    names = [name for name in described["model"]["vocab"] if name not in late]
    described["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    described["added_tokens"] = [
        {"id": len(names) + i, "content": name, **flags, "normalized": name in late, "special": name not in late}
        for i, name in enumerate([begin, end, *late])
    ]
    tokenizer = Tokenizer.from_str(json.dumps(described))
    last = tokenizer.encode(":").ids[-1]
    order = [last, *map(tokenizer.token_to_id, "schön"), tokenizer.token_to_id(end)]
    model = saying(tokenizer.get_vocab_size(), dict(itertools.pairwise(order)), order[-1], eos_token_id=order[-1])
    template = "{% for m in messages %}User: {{ m.content }}\n\n{% endfor %}Assistant:"
    return save(folder, model, tokenizer, template, bos_token=begin, eos_token=end)


def bytes_over_the_border(folder: Path) -> Path:
    """It goes on with the next byte of 🎉 wherever the prompt ends."""
    tokenizer = byte_fallback()
    party = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🎉".encode()]
    model = saying(tokenizer.get_vocab_size(), dict(zip(party, [*party[1:], party[0]], strict=True)), 2, eos_token_id=2)
    return save(folder, model, tokenizer, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def a_class_that_is_built_anew(folder: Path) -> Path:
    """transformers builds the class that tokenizer_config.json names, without the file's way to split texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CODE * 30, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in TURN_TOKENS])
    model = saying(tokenizer.get_vocab_size(), {}, tokenizer.token_to_id("a"))
    return save(
        folder, model, tokenizer, CHATML, tokenizer_class="GPT2Tokenizer", eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )  # fmt: skip


SERVED: dict[str, Callable[[Path], Path]] = {
    builder.__name__: builder
    for builder in (
        a_pad_token_without_an_embedding,
        an_end_without_an_embedding,
        an_end_that_only_the_tokenizer_knows,
        yarn,
        a_template_of_parts,
        letters_among_the_added_tokens,
        bytes_over_the_border,
        a_class_that_is_built_anew,
    )
}
