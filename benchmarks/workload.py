"""The seeded workload and the checkpoint that the benchmarks run on; both are made here, so nothing is downloaded."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 16384


@dataclass(frozen=True)
class Job:
    """One request: a prompt, and how many tokens it must get (ends of answers are ignored)."""

    prompt_ids: list[int]
    max_tokens: int

    @property
    def prompt(self) -> str:
        """Text that the checkpoint's tokenizer turns into exactly `prompt_ids`."""
        return " ".join(f"w{token}" for token in self.prompt_ids)


def make_jobs(count: int, seed: int = 0) -> list[Job]:
    """`count` requests of 32 to 256 prompt tokens and 32 to 128 output tokens, uniformly; no shared prefixes."""
    rng = random.Random(seed)
    return [
        Job([rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(32, 256))], rng.randint(32, 128))
        for _ in range(count)
    ]


def make_checkpoint(folder: Path) -> Path:
    """An 82M-parameter bf16 Llama with random weights (12 heads, 4 KV heads) and a word-level tokenizer."""
    if (folder / "tokenizer.json").exists():  # written last
        return folder
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=9,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder, safe_serialization=True)
    # Special tokens are found inside words too, so no word may hold one.
    special = {"<s>": 0, "</s>": 1, "<pad>": 2}
    vocabulary = special | {f"w{i}": i for i in range(len(special), VOCAB_SIZE)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)  # noqa: S106
    return folder
