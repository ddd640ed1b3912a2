"""`EngineConfig`: every knob of the engine, its default and its check."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from chat_engine.errors import ConfigError
from chat_engine.settings import check_settings, read_settings

CONFIG_VARIABLE = "TRITON_CHAT_ENGINE_CONFIG"
MODEL_VARIABLE = "TRITON_CHAT_MODEL"
ENGINE_VARIABLE = "TRITON_CHAT_ENGINE"


EngineName = Literal["native", "vllm"]

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
_MOST_ADAPTERS = 1024


def _adapter_name(name: str) -> str:
    """Callers name it as a model, so it has the characters of a model's id."""
    if not _ADAPTER_NAME.fullmatch(name):
        raise PydanticCustomError(
            "name",
            "the name of an adapter begins with a letter or a digit, and has at most 128 letters, digits and "
            "characters of _ . : / -",
        )
    return name


AdapterName = Annotated[str, AfterValidator(_adapter_name)]


class NgramSettings(BaseModel):
    """Guesses by what followed the last tokens of an answer where they occurred before."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tokens: int = Field(4, ge=1, le=16, description="Guesses of a sequence in a step.")
    longest: int = Field(4, ge=1, le=16, description="Tokens that must have occurred before, at first.")
    shortest: int = Field(2, ge=1, le=16, description="At least, where no more have.")
    max_sequences: int = Field(4, ge=1, le=4096, description="While more sequences run, none is guessed.")

    @model_validator(mode="after")
    def _check(self) -> NgramSettings:
        if self.shortest > self.longest:
            raise ValueError(f"shortest is {self.shortest}, more than longest, {self.longest}")
        return self


class Speculation(BaseModel):
    """How tokens are guessed ahead."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ngram: NgramSettings


class EngineConfig(BaseModel):
    """Settings of one chat model. An unknown key is an error; None means: chosen from the model or the device."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    engine: EngineName = Field("native", description="Inference engine.")
    vllm: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of vLLM by their own names, for the engine vllm."
    )
    adapters: dict[AdapterName, Annotated[str, StringConstraints(min_length=1)]] = Field(
        default_factory=dict,
        max_length=_MOST_ADAPTERS,
        description="LoRA adapters by name: hub id or folder of each (safetensors), for the engine vllm.",
    )
    model: str = Field(min_length=1, description="Hub id or folder of the checkpoint (safetensors).")
    revision: str | None = Field(None, description="Commit, tag or branch of the hub repository.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of weights and KV cache; auto: the checkpoint's, but float32 on a CPU without 16-bit "
        "matrix products, if memory allows.",
    )
    quantization: Literal["int8"] | None = Field(
        None, description="Type that the weights of linear layers are rounded to while loading, on a CPU."
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: CUDA if available.")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of the forward pass; where that is every core, steps of few rows may leave one.",
    )

    max_model_len: int | None = Field(
        None, ge=2, description="Context limit in tokens, for prompt and answer together."
    )
    max_sequences: int = Field(64, ge=1, le=4096, description="Maximum number of sequences that run at the same time.")
    queue_room: int = Field(0, ge=0, le=4096, description="Additional sequences that may wait in the engine.")
    max_step_tokens: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="Maximum tokens in one forward pass; long prompts are prefilled in chunks of it.",
    )
    max_gap_seconds: float = Field(
        0.25,
        ge=0,
        le=60,
        description="About how long a chunk of a prompt may keep running answers waiting; longer where more requests "
        "wait for their first token than read answers. 0: as long as it takes.",
    )

    block_size: int | None = Field(None, ge=1, le=1024, description="Tokens per KV cache block.")
    kv_cache_tokens: int | None = Field(
        None, ge=2, description="Capacity of the KV cache; by default from the free memory."
    )
    memory_fraction: float = Field(
        0.9, gt=0, lt=1, description="Fraction of the GPU's memory that may be used in total."
    )
    prefix_caching: bool = Field(
        True, description="Keep computed blocks and reuse them for prompts with the same prefix."
    )
    speculation: Speculation | None = Field(
        None,
        description='Tokens that are guessed and computed ahead, such as {"ngram": {"tokens": 4}}; none by default.',
    )
    cuda_graphs: bool = Field(
        True,
        description="On a GPU, capture steps of decodes as CUDA graphs while loading; false: launch each kernel.",
    )
    compile: bool = Field(
        True, description="Compile the layers for these graphs, which fuses their small kernels; loading takes longer."
    )
    async_scheduling: bool = Field(
        False,
        description="On a GPU, with these graphs, start a step of decodes before the tokens of the last are read.",
    )

    default_max_tokens: int | None = Field(
        None, ge=1, description="max_tokens of requests without one; by default the checkpoint's, else 512."
    )
    max_logprobs: int = Field(20, ge=0, le=100, description="Maximum alternatives per token in a request.")
    max_unstreamed_scores: int = Field(
        1 << 18, ge=1, description="Maximum log-probabilities of a prompt, including alternatives, in one response."
    )
    max_stop_strings: int = Field(16, ge=0, le=256)
    max_stop_length: int = Field(256, ge=1, le=4096, description="Maximum length of a stop string, in characters.")
    max_logit_bias: int = Field(1024, ge=0, le=1 << 17, description="Maximum entries of logit_bias.")
    max_grammar_bytes: int = Field(
        1 << 17,
        ge=1,
        le=1 << 20,
        description="Maximum size of a schema, regex or grammar, or of all choices, in bytes.",
    )
    max_choices: int = Field(4000, ge=1, le=100_000, description="Maximum number of choices of structured_outputs.")
    max_grammar_symbols: int = Field(
        10_000, ge=1, le=100_000, description="Maximum size of a grammar once it is compiled, in symbols."
    )
    grammar_seconds: float = Field(2.0, gt=0, le=60, description="Maximum time to compile a grammar.")
    chat_template: str | None = Field(
        None, description="Name of one of the checkpoint's chat templates; none: messages are rejected."
    )
    answer_format: str | None = Field(
        None,
        description="How the model writes reasoning and tool calls: a format by its name, or none; by default what the "
        "tokenizer ships or the chat template shows.",
    )
    split_special_tokens: bool = Field(
        True, description="Treat a special token spelled out in a message as text; false: as the token."
    )

    max_messages: int = Field(2048, ge=1)
    max_tools: int = Field(128, ge=0, le=4096, description="Maximum number of tools in a request.")
    max_prompt_bytes: int = Field(1 << 20, ge=1, description="Maximum size of each text input, in bytes.")

    max_pending_bytes: int = Field(
        8 << 20,
        ge=1 << 16,
        description="Maximum part of a stream that waits to be sent, in bytes; then it is cancelled.",
    )
    slow_reader_seconds: float = Field(
        60.0, gt=0, description="Maximum time that a part of a stream waits to be sent; then it is cancelled."
    )
    stall_seconds: float | None = Field(
        None,
        gt=0,
        description="The engine is stuck when sequences run but no step has finished for this long; by default 20 "
        "times the longest step so far, within 5 (in the first 100 steps 20) and 120.",
    )
    drain_seconds: float = Field(30.0, ge=0, le=86_400, description="Time for running answers to finish at shutdown.")

    @model_validator(mode="after")
    def _check_async_scheduling(self) -> EngineConfig:
        if self.async_scheduling and not self.cuda_graphs:
            raise ValueError("async_scheduling needs cuda_graphs")
        if self.async_scheduling and self.speculation:
            raise ValueError("async_scheduling and speculation do not go together: guesses wait for each token")
        return self

    @field_validator("vllm")
    @classmethod
    def _of_its_engine(cls, block: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if block and info.data.get("engine") == "native":
            raise PydanticCustomError("other_engine", 'only with "engine": "vllm"')
        return block

    @field_validator("adapters")
    @classmethod
    def _of_an_engine_that_has_them(cls, adapters: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if adapters and info.data.get("engine") == "native":
            raise PydanticCustomError(
                "other_engine",
                'the engine native has none; set "engine": "vllm" and "vllm": {"enable_lora": true}, or serve a '
                "checkpoint that the adapter is merged into",
            )
        if adapters and "vllm" in info.data and info.data["vllm"].get("enable_lora") is not True:
            raise PydanticCustomError("disabled", 'set "vllm": {"enable_lora": true} too')
        return adapters


def load_config(
    model_name: str, version_folder: Path, overrides: Mapping[str, object], env: Mapping[str, str] | None = None
) -> EngineConfig:
    """The settings of `model_name`: a file named by the environment, else `engine.json` beside the code.

    `TRITON_CHAT_ENGINE_CONFIG` names a file, or a folder holding `<model name>.json`. `TRITON_CHAT_MODEL` replaces the
    checkpoint of the model `chat` alone, and `TRITON_CHAT_ENGINE` its engine. `overrides` fill in what neither says
    (the device of the instance group).

    Raises:
        ConfigError: the file is missing, is not JSON, or holds an unknown key or a bad value; or a variable does.
    """
    env = os.environ if env is None else env
    path = _config_path(model_name, version_folder, env.get(CONFIG_VARIABLE))
    settings = read_settings(path, "engine")
    if model_name == "chat" and env.get(MODEL_VARIABLE):
        settings["model"] = env[MODEL_VARIABLE]
    if model_name == "chat" and env.get(ENGINE_VARIABLE):
        settings["engine"] = _engine(env[ENGINE_VARIABLE], settings)
    config = parse_config({**overrides, **settings}, str(path))
    if model_name in config.adapters:
        raise ConfigError(f"{path}: adapters: {model_name} is the name of the model itself; give the adapter another")
    return config


def parse_config(settings: Mapping[str, object], source: str = "engine settings") -> EngineConfig:
    """Checks `settings`. Raises ConfigError with one line per mistake."""
    return check_settings(EngineConfig, settings, source)


def _engine(name: str, settings: Mapping[str, object]) -> str:
    """The engine that the environment names, if these settings allow it."""
    if name not in (names := get_args(EngineName)):
        raise ConfigError(f"{ENGINE_VARIABLE} must be {' or '.join(names)} (got {name!r})")
    if name == "native" and settings.get("vllm"):
        raise ConfigError(
            f"{ENGINE_VARIABLE}: is native, but the engine settings have a block vllm, which is for that engine; "
            "remove one of them"
        )
    return name


def _config_path(model_name: str, version_folder: Path, named: str | None) -> Path:
    if not named:
        return version_folder / "engine.json"
    path = Path(named)
    return path / f"{model_name}.json" if path.is_dir() else path
