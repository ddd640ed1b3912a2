"""Bodies of requests, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from chat_gateway.schemas.chat import ChatCompletionRequest
from chat_gateway.schemas.completions import CompletionRequest
from chat_gateway.schemas.embeddings import EmbeddingRequest

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "chat", "messages": HELLO}
COMPLETION = {"model": "chat", "prompt": "hello"}
EMBEDDING = {"model": "e", "input": "a"}
BODIES: dict[type[BaseModel], dict[str, Any]] = {
    ChatCompletionRequest: CHAT,
    CompletionRequest: COMPLETION,
    EmbeddingRequest: EMBEDDING,
}

ANY_TEXT: tuple[list[Any], list[Any]] = ([None, "x"], [5, "x" * 513])
ONLY_FALSE: tuple[list[Any], list[Any]] = ([None, False], [True, 0, "no"])
ONLY_TRUE: tuple[list[Any], list[Any]] = ([None, True], [False, 1])
EMPTY_LIST: tuple[list[Any], list[Any]] = ([None, []], [["x"], {}])
EMPTY_OBJECT: tuple[list[Any], list[Any]] = ([None, {}], [{"a": 1}, []])

OF_ALL: dict[str, tuple[list[Any], list[Any]]] = {
    "cache_salt": ([None], ["x", ""]),
    "mm_processor_kwargs": EMPTY_OBJECT,
    "priority": ([None, 0], [1, -1]),
    "request_id": ANY_TEXT,
    "user": ([None, "someone", "某人"], ["s" * 513, 5]),
}
OF_GENERATION = OF_ALL | {
    "allowed_token_ids": ([None], [[], [1]]),
    "bad_words": EMPTY_LIST,
    "early_stopping": ONLY_FALSE,
    "ec_transfer_params": ([None], [{}]),
    "guided_decoding_backend": ([None, "auto", "guidance"], ["xgrammar"]),
    "guided_whitespace_pattern": ([None], [" "]),
    "include_stop_str_in_output": ONLY_FALSE,
    "kv_transfer_params": ([None], [{}]),
    "length_penalty": ([None, 1, 1.0], [0.5, 1.1]),
    "logits_processors": EMPTY_LIST,
    "logprob_token_ids": ([None], [[1]]),
    "repetition_detection": ([None], [{}]),
    "return_mm_kwargs": ([None, True, False], ["x"]),
    "return_token_offsets": ONLY_FALSE,
    "return_tokens_as_token_ids": ONLY_FALSE,
    "routed_experts_prompt_start": ([None, 0], [1]),
    "session_id": ANY_TEXT,
    "spaces_between_special_tokens": ([None, True, False], [1]),
    "stream_interval": ([None, 1, 10], [0]),
    "thinking_token_budget": ([None, -1], [0, 100]),
    "truncate_prompt_tokens": ([None], [-1, 10]),
    "truncation_side": ([None, "left", "right"], ["middle"]),
    "use_beam_search": ONLY_FALSE,
    "vllm_xargs": EMPTY_OBJECT,
    "watermarking": ONLY_FALSE,
}
OF_CHAT = OF_GENERATION | {
    "add_special_tokens": ONLY_FALSE,
    "audio": ([None], [{"voice": "alloy", "format": "wav"}]),
    "chat_template": ([None], ["{{ messages }}", ""]),
    "documents": EMPTY_LIST,
    "echo": ONLY_FALSE,
    "media_io_kwargs": EMPTY_OBJECT,
    "metadata": ([None, {}, {"a": "b"}, {"tags": ["x", 1]}], ["x", []]),
    "modalities": ([None, ["text"]], [["text", "audio"], []]),
    "moderation": ([None], [{"model": "omni"}]),
    "prediction": ([None, {"type": "content", "content": "x"}], ["x"]),
    "prompt_cache_key": ANY_TEXT,
    "prompt_cache_options": ([None, {}, {"mode": "explicit", "ttl": "30m"}], ["x"]),
    "prompt_cache_retention": ([None, "in_memory", "24h"], [24]),
    "return_prompt_text": ONLY_FALSE,
    "safety_identifier": ANY_TEXT,
    "service_tier": ([None, "auto", "default", "flex", "priority"], [1]),
    "store": ([None, False, True], [0, "x"]),
    "verbosity": ([None, "low", "medium", "high"], ["none", 1]),
    "web_search_options": ([None], [{}]),
}
OF_COMPLETIONS = OF_GENERATION | {
    "add_special_tokens": ONLY_TRUE,
    "prompt_embeds": ([None], ["AAAA"]),
    "suffix": ([None, ""], ["x"]),
}
OF_EMBEDDINGS = OF_ALL | {
    "add_special_tokens": ONLY_TRUE,
    "embed_dtype": ([None, "float32"], ["float16"]),
    "endianness": ([None, "native", "little"], ["big"]),
    "normalize": ONLY_TRUE,
    "use_activation": ONLY_TRUE,
}
"""Of each kind of request, the fields that choose nothing: what is taken, and what is refused."""


def mistakes(model: type[BaseModel], body: dict[str, Any]) -> dict[tuple[str | int, ...], str]:
    """Place and sentence of everything that is wrong."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return {error["loc"]: error["msg"] for error in caught.value.errors()}
