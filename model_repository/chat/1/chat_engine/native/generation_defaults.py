"""What a checkpoint's `generation_config.json` asks for: ends of answers, sampling, and tokens that are ruled out.

It means here what it means to `transformers.generate`; what is not done here is named when the model loads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from chat_engine.native.token_rules import TokenRules

log = logging.getLogger(__name__)

_GENERATE_TOP_K = 50  # of `generate` where the file names none: GenerationConfig._get_default_generation_params
# What is not done here, and the values at which it does nothing.
_NOT_HONOURED: dict[str, tuple[object, ...]] = {
    "bad_words_ids": ([],),
    "constraints": ([],),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "max_length": (20,),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0.0,),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1.0,),
    "watermarking_config": (),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """What holds for requests that say nothing else.

    Attributes:
        eos_ids: tokens that end an answer.
        sampling: fields of `SamplingParams`.
        max_tokens: None where the checkpoint names none.
        rules: holds for every request.
    """

    eos_ids: frozenset[int]
    sampling: dict[str, object]
    max_tokens: int | None
    rules: TokenRules


def generation_defaults(model: PreTrainedModel, *files: Mapping[str, Any]) -> GenerationDefaults:
    """Reads them from the loaded model, and the ends from what is written in its files."""
    return read_defaults(model.generation_config, int(model.config.get_text_config().vocab_size), *files)


def read_defaults(generation: GenerationConfig, vocab_size: int, *files: Mapping[str, Any]) -> GenerationDefaults:
    """The same for a model that others have loaded."""
    _name_what_is_not_honoured(generation)
    eos_ids = _eos_ids(files)
    suppressed = _ids(generation.suppress_tokens), _ids(generation.begin_suppress_tokens)
    return GenerationDefaults(
        eos_ids=in_vocabulary("an end token of generation_config.json or config.json", eos_ids, vocab_size),
        sampling=_sampling(generation),
        max_tokens=generation.max_new_tokens,
        rules=TokenRules(
            no_repeat_ngram_size=generation.no_repeat_ngram_size or 0,
            suppressed=in_vocabulary("suppress_tokens", suppressed[0], vocab_size),
            suppressed_first=in_vocabulary("begin_suppress_tokens", suppressed[1], vocab_size),
        ),
    )


def in_vocabulary(what: str, ids: Iterable[int], vocab_size: int) -> frozenset[int]:
    """Those that the model can make; the log names the others."""
    ids = frozenset(ids)
    beyond = sorted(token for token in ids if not 0 <= token < vocab_size)
    if beyond:
        log.warning("%s: %s left out; the model has the tokens 0 to %d", what, beyond, vocab_size - 1)
    return ids - set(beyond)


def _sampling(generation: GenerationConfig) -> dict[str, object]:
    names = ("repetition_penalty", "top_p", "min_p", "top_k")  # those that cut hold for requests that set a temperature
    chosen: dict[str, object] = {name: getattr(generation, name) for name in names}
    if generation.do_sample:
        chosen["temperature"] = generation.temperature
        chosen["top_k"] = _GENERATE_TOP_K if generation.top_k is None else generation.top_k
    else:
        chosen["temperature"] = 0.0
    return {name: value for name, value in chosen.items() if value is not None}


def _eos_ids(files: Iterable[Mapping[str, Any]]) -> frozenset[int]:
    """Of all files: one that was not kept up to date must not make an answer run on.

    Only of what is written there: the config classes of transformers have an end by default (2 for a Llama), which is
    any token in another vocabulary.
    """
    parts = [part for file in files for part in (file, file.get("text_config") or {})]
    return frozenset(token for part in parts for token in _ids(part.get("eos_token_id")))


def _ids(value: int | list[int] | None) -> list[int]:
    return [value] if isinstance(value, int) else list(value or ())


def _name_what_is_not_honoured(generation: GenerationConfig) -> None:
    values = {name: getattr(generation, name, None) for name in _NOT_HONOURED}
    unmet = {n: v for n, v in values.items() if v is not None and v not in _NOT_HONOURED[n]}
    if unmet:
        listed = ", ".join(f"{name}: {value!r}" for name, value in unmet.items())
        log.warning("generation_config.json: not honoured: %s", listed)
