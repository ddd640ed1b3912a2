"""Tiny decoders of many families, and those that must be refused. Sizes are such that a test takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import transformers as hf

VOCAB = 128
CONTEXT = 96
WINDOW = 6  # far shorter than the sequences

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT2 = {
    "vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

# Run through everything.
MAIN: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama with grouped heads": lambda: hf.LlamaConfig(**_GROUPED),
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED),
    "mistral with a sliding window": lambda: hf.MistralConfig(**_GROUPED, sliding_window=WINDOW),
}
# Run through one crowded scenario each.
OTHERS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama with one head for all": lambda: hf.LlamaConfig(**_COMMON, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, head_dim=16),
    "gemma": lambda: hf.GemmaConfig(**_GROUPED, head_dim=8),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **_GROUPED, head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: hf.Phi3Config(**_GROUPED, sliding_window=WINDOW),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_COMMON),
    "gpt2": lambda: hf.GPT2Config(**_GPT2),
    "olmo2": lambda: hf.Olmo2Config(**_GROUPED),
    "mixtral": lambda: hf.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "deepseek-v3": lambda: hf.DeepseekV3Config(
        **_COMMON, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=12, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16,
        n_shared_experts=1, first_k_dense_replace=1,
    ),
}  # fmt: skip
REFUSED: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "logits that are capped (gemma2)": lambda: hf.Gemma2Config(**_GROUPED, head_dim=8),
    "no attention (mamba)": lambda: hf.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
    "a state beside the attention (falcon-h1)": lambda: hf.FalconH1Config(
        **_GROUPED, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
    ),
    "some layers without attention (lfm2)": lambda: hf.Lfm2Config(**_GROUPED, layer_types=["conv", "full_attention"]),
    "chunked attention (llama4)": lambda: hf.Llama4TextConfig(
        **_GROUPED, head_dim=8, attention_chunk_size=WINDOW, num_local_experts=2, intermediate_size_mlp=48
    ),
    "a mask of its own (doge)": lambda: hf.DogeConfig(**_GROUPED),
    "attention sinks (gpt-oss)": lambda: hf.GptOssConfig(**_GROUPED, head_dim=8, num_local_experts=2),
    "attention in the model's code (bloom)": lambda: hf.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4
    ),
    "a table of its own (falcon)": lambda: hf.FalconConfig(**_COMMON),
    "attention to both sides (bert)": lambda: hf.BertConfig(**_COMMON),
}


def wide(window: int | None) -> hf.PretrainedConfig:
    """With heads of 64, as flash attention wants them."""
    sizes = {**_GROUPED, "hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 1024}
    return hf.MistralConfig(**sizes, head_dim=64, sliding_window=window)


def unused_window() -> hf.PretrainedConfig:
    """A window in the settings that the model's code leaves to the mask and does not pass to its attention."""
    return hf.PhimoeConfig(**_GROUPED, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2)
