"""The checkpoint that the benchmarks run on; it is made here, so nothing is downloaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.jobs import VOCAB_SIZE


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama with random weights."""

    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 9
    num_attention_heads: int = 12
    num_key_value_heads: int = 4
    max_position_embeddings: int = 4096

    @property
    def kv_bytes(self) -> int:
        """What a token takes in the KV cache, in 16 bits."""
        head = self.hidden_size // self.num_attention_heads
        return 2 * 2 * self.num_hidden_layers * self.num_key_value_heads * head


LLAMA_82M = Shape()
LLAMA_500M = Shape(
    vocab_size=65536,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
)
"""Of the layers of Qwen2.5 0.5B."""
DEEPSEEK_7B = Shape(
    vocab_size=102400,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=30,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
)
"""Of DeepSeek-LLM 7B."""


def make_checkpoint(folder: Path, shape: Shape = LLAMA_82M) -> Path:
    """A bf16 Llama with random weights and a word-level tokenizer; by default one of 82M parameters."""
    if (folder / "tokenizer.json").exists():  # written last
        return folder
    _make_model(shape).save_pretrained(folder, safe_serialization=True)
    # Special tokens are found inside words too, so no word may hold one.
    special = {"<s>": 0, "</s>": 1, "<pad>": 2}
    vocabulary = special | {f"w{i}": i for i in range(len(special), shape.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)  # noqa: S106
    return folder


def _make_model(shape: Shape) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**asdict(shape), tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    # A large one is made where that takes seconds, and never in 32 bits.
    large = shape.hidden_size >= 4096
    with torch.device("cuda" if large and torch.cuda.is_available() else "cpu"):
        if not large:
            model: LlamaForCausalLM = LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]
            return model
        torch.set_default_dtype(torch.bfloat16)
        try:
            return LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)
