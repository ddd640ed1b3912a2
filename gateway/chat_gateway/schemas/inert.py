"""Fields of vLLM's API that choose nothing here: taken at the values that change nothing, and where none can, at any.

What one may send and what comes of it stands in docs/gateway.md. Source: vLLM's `ChatCompletionRequest`,
`CompletionRequest` and `EmbeddingCompletionRequest`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from chat_gateway.schemas.fields import NoSettings, Nothing, Off, On, Strict, only

Name = Annotated[str, Field(max_length=512)]

_NO_BEAMS: Final = "beam search is not supported; leave it out"
_NO_TRANSFER: Final = "transfers between servers are not supported; leave it out"
NO_MEDIA: Final = "only text is supported; leave it out"
_NO_IDS: Final = "use logit_bias instead, and leave this out"

Zero = Annotated[int, Field(ge=0, le=0)]
One = Annotated[float, Field(ge=1, le=1)]


class InertEverywhere(Strict):
    """Of all requests that a model answers."""

    request_id: Name | None = Field(None, description="Not used; send the header X-Request-Id instead.")
    priority: Annotated[
        Zero | None, only("requests are served in the order of their arrival; leave it out or send 0")
    ] = None
    cache_salt: Annotated[None, only("all callers share the prefix cache; leave it out")] = None
    mm_processor_kwargs: Annotated[NoSettings | None, only(NO_MEDIA)] = None


class InertInGeneration(InertEverywhere):
    """Of chat and completions."""

    session_id: Name | None = Field(None, description="Not used: the prefix cache works automatically.")
    stream_interval: int | None = Field(
        None, ge=1, description="Not used: under load chunks hold several tokens automatically."
    )
    spaces_between_special_tokens: bool | None = Field(
        None, description="Not used: only fast tokenizers are supported, which put no spaces there."
    )
    truncation_side: Literal["left", "right"] | None = Field(None, description="Not used: nothing is truncated.")
    return_mm_kwargs: bool | None = Field(None, description="Not used, as in vLLM.")

    return_token_offsets: Annotated[Off | None, only("token offsets are not supported; leave it out or send false")] = (
        None
    )
    use_beam_search: Annotated[Off | None, only(_NO_BEAMS)] = None
    early_stopping: Annotated[Off | None, only(_NO_BEAMS)] = None
    length_penalty: Annotated[One | None, only("beam search is not supported; leave it out or send 1")] = None
    include_stop_str_in_output: Annotated[
        Off | None, only("the answer ends before a stop string; leave it out or send false")
    ] = None
    truncate_prompt_tokens: Annotated[
        None, only("prompts are never truncated, ones that are too long are refused; leave it out")
    ] = None
    allowed_token_ids: Annotated[None, only(_NO_IDS)] = None
    bad_words: Annotated[Nothing | None, only(_NO_IDS)] = None
    logits_processors: Annotated[Nothing | None, only("custom logits processors are not supported; leave it out")] = (
        None
    )
    logprob_token_ids: Annotated[None, only("top_logprobs reports the most probable tokens; leave this out")] = None
    return_tokens_as_token_ids: Annotated[Off | None, only("tokens are reported as text; leave it out")] = None
    repetition_detection: Annotated[None, only("send repetition_penalty instead, or leave it out")] = None
    thinking_token_budget: Annotated[Literal[-1] | None, only("reasoning budgets are not supported; leave it out")] = (
        None
    )
    watermarking: Annotated[Off | None, only("watermarking is not supported; leave it out")] = None
    routed_experts_prompt_start: Annotated[Zero | None, only("expert routing is not reported; leave it out")] = None

    kv_transfer_params: Annotated[None, only(_NO_TRANSFER)] = None
    ec_transfer_params: Annotated[None, only(_NO_TRANSFER)] = None
    vllm_xargs: Annotated[NoSettings | None, only("vLLM extensions are not supported; leave it out")] = None


class InertInChat(InertInGeneration):
    """Of chat alone."""

    add_special_tokens: Annotated[
        Off | None, only("the chat template adds the special tokens; leave it out or send false")
    ] = None
    echo: Annotated[Off | None, only("the last message is not repeated; leave it out or send false")] = None
    documents: Annotated[Nothing | None, only("write documents into the messages, and leave this out")] = None
    media_io_kwargs: Annotated[NoSettings | None, only(NO_MEDIA)] = None
    return_prompt_text: Annotated[
        Off | None, only("use POST /tokenize and /detokenize instead, and leave this out")
    ] = None


class InertInCompletions(InertInGeneration):
    """Of completions alone."""

    add_special_tokens: Annotated[
        On | None, only("text prompts always get special tokens; leave it out, or send the prompt as token ids")
    ] = None
    prompt_embeds: Annotated[None, only("a prompt must be text or token ids; leave it out")] = None


class InertInEmbeddings(InertEverywhere):
    """Of embeddings alone."""

    add_special_tokens: Annotated[
        On | None, only("text inputs always get special tokens; leave it out, or send the input as token ids")
    ] = None
    normalize: Annotated[On | None, only("vectors have the length 1; leave it out or send true")] = None
    use_activation: Annotated[On | None, only("vectors have the length 1; leave it out or send true")] = None
    embed_dtype: Annotated[Literal["float32"] | None, only("vectors are float32; leave it out or send float32")] = None
    endianness: Annotated[
        Literal["native", "little"] | None, only("base64 is little-endian; leave it out or send little")
    ] = None
