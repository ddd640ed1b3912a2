"""`EmbedderConfig`: every knob of the embedding model, its default and its check."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from chat_engine.settings import check_settings, read_settings

CONFIG_VARIABLE = "TRITON_CHAT_EMBEDDINGS_CONFIG"
MODEL_VARIABLE = "TRITON_CHAT_EMBEDDINGS_MODEL"

PoolingName = Literal["mean", "cls", "last"]


class EmbedderConfig(BaseModel):
    """Settings of one embedding model. An unknown key is an error; None means: chosen from the model or the device."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    model: str = Field(min_length=1, description="Hub id or folder of the checkpoint (safetensors).")
    revision: str | None = Field(None, description="Commit, tag or branch of the hub repository.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of the weights; auto: the checkpoint's, and float32 on a CPU. Vectors are float32.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: CUDA if available.")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of the forward pass; by default half of the cores."
    )
    pooling: PoolingName | Literal["auto"] = Field(
        "auto", description="auto: from the checkpoint's sentence-transformers files, else mean."
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="Maximum length of a text in tokens, including special ones; by default the checkpoint's.",
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        le=1 << 24,
        description="Maximum tokens in one forward pass, including padding; a longer text is processed alone.",
    )
    max_text_bytes: int = Field(
        1 << 18, ge=1, description="Maximum size of a text, or of a list of token ids as JSON, in bytes."
    )


def load_config(
    version_folder: Path, overrides: Mapping[str, object], env: Mapping[str, str] | None = None
) -> EmbedderConfig:
    """The settings in the file that the environment names, else in `embedder.json` beside the code.

    A `model` in the file that is a folder, seen from that file, is that folder. `TRITON_CHAT_EMBEDDINGS_MODEL` replaces
    it. `overrides` fill in what neither says (the device of the instance group).

    Raises:
        ConfigError: the file is missing, is not JSON, or holds an unknown key or a bad value.
    """
    env = os.environ if env is None else env
    path = Path(env.get(CONFIG_VARIABLE) or version_folder / "embedder.json")
    settings = read_settings(path, "embedding")
    if isinstance(model := settings.get("model"), str) and (path.parent / model).is_dir():
        settings["model"] = str((path.parent / model).resolve())
    if env.get(MODEL_VARIABLE):
        settings["model"] = env[MODEL_VARIABLE]
    return check_settings(EmbedderConfig, {**overrides, **settings}, str(path))
