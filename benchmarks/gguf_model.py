"""The benchmark's checkpoint in llama.cpp's form: `python -m benchmarks.gguf_model <folder> <file> <dtype>`.

It needs the package gguf, which comes with llama.cpp's sources.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name: str) -> str:
    """Of a weight, by its name in a Llama of transformers."""
    if name.startswith("model.layers."):
        _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{_NAMES[inner]}.weight"
    return f"{_NAMES[name.removesuffix('.weight')]}.weight"


def in_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys in llama.cpp's order: what rotates together stands together."""
    return weight.view(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def convert(checkpoint: Path, target: Path, dtype: str) -> None:
    """Writes `target`, with a word for each token, as in the checkpoint's tokenizer."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(target.with_suffix(".part"), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    _add_words(writer, config["vocab_size"])
    _add_weights(writer, checkpoint, config, getattr(torch, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target.with_suffix(".part").rename(target)


def _add_words(writer: gguf.GGUFWriter, size: int) -> None:
    special = ["<s>", "</s>", "<pad>"]
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(special + [f"▁w{token}" for token in range(len(special), size)])
    writer.add_token_scores([0.0] * size)
    kinds = [gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * (size - len(special))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(2)
    writer.add_add_bos_token(False)


def _add_weights(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, int], dtype: torch.dtype) -> None:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        count = next((count for part, count in heads.items() if part in name), None)
        ordered = in_pairs(weight, count) if count else weight
        if ordered.ndim == 1 or dtype is torch.float32:
            writer.add_tensor(gguf_name(name), ordered.float().numpy())
        else:  # numpy has no bfloat16
            data = ordered.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(gguf_name(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)


if __name__ == "__main__":
    folder, file, kind = sys.argv[1:]
    convert(Path(folder), Path(file), kind)
