"""Fields of vLLM's API that choose nothing here: taken at the values that change nothing, and where none can, at any.

What one may send and what comes of it stands in docs/gateway.md. Source: vLLM's `ChatCompletionRequest`,
`CompletionRequest` and `EmbeddingCompletionRequest`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from chat_gateway.schemas.fields import NoSettings, Nothing, Off, On, Strict, only

Name = Annotated[str, Field(max_length=512)]

_STRUCTURED: Final = "answers are free text here, nothing is enforced; leave it out"
_NO_BEAMS: Final = "there is no beam search here; leave it out"
_NO_TRANSFER: Final = "a request stays on one server here; leave it out"
NO_MEDIA: Final = "only text is taken here; leave it out"
_NO_IDS: Final = "logit_bias has a value for each token; leave this out"

NoGuide = Annotated[None, only(_STRUCTURED)]
Zero = Annotated[int, Field(ge=0, le=0)]
One = Annotated[float, Field(ge=1, le=1)]


class InertEverywhere(Strict):
    """Of all requests that a model answers."""

    request_id: Name | None = Field(None, description="Not used: the header X-Request-Id is.")
    priority: Annotated[
        Zero | None, only("requests are served in the order of their arrival; leave it out or send 0")
    ] = None
    cache_salt: Annotated[None, only("all callers share the prefix cache; leave it out")] = None
    mm_processor_kwargs: Annotated[NoSettings | None, only(NO_MEDIA)] = None


class InertInGeneration(InertEverywhere):
    """Of chat and completions."""

    session_id: Name | None = Field(None, description="Not used: the cache finds equal beginnings by itself.")
    stream_interval: int | None = Field(
        None, ge=1, description="Not used: under load a chunk has several tokens by itself."
    )
    spaces_between_special_tokens: bool | None = Field(
        None, description="Not used: fast tokenizers put no spaces there, and all here are fast."
    )
    truncation_side: Literal["left", "right"] | None = Field(None, description="Not used: nothing is truncated.")
    return_mm_kwargs: bool | None = Field(None, description="Not used, as in vLLM.")

    return_token_offsets: Annotated[
        Off | None, only("where a token stands in the text is told by logprobs; leave it out or send false")
    ] = None
    use_beam_search: Annotated[Off | None, only(_NO_BEAMS)] = None
    early_stopping: Annotated[Off | None, only(_NO_BEAMS)] = None
    length_penalty: Annotated[One | None, only("there is no beam search here; leave it out or send 1")] = None
    include_stop_str_in_output: Annotated[
        Off | None, only("the answer ends before a stop string; leave it out or send false")
    ] = None
    truncate_prompt_tokens: Annotated[
        None, only("a prompt is never cut here, one that is too long is refused; leave it out")
    ] = None
    allowed_token_ids: Annotated[None, only(_NO_IDS)] = None
    bad_words: Annotated[Nothing | None, only(_NO_IDS)] = None
    logits_processors: Annotated[Nothing | None, only("no code of callers is run here; leave it out")] = None
    logprob_token_ids: Annotated[None, only("top_logprobs reports the most probable tokens; leave this out")] = None
    return_tokens_as_token_ids: Annotated[Off | None, only("tokens are reported as text; leave it out")] = None
    repetition_detection: Annotated[None, only("send repetition_penalty instead, or leave it out")] = None
    thinking_token_budget: Annotated[
        Literal[-1] | None, only("how much a model reasons cannot be set here; leave it out")
    ] = None
    watermarking: Annotated[Off | None, only("nothing is watermarked here; leave it out")] = None
    routed_experts_prompt_start: Annotated[Zero | None, only("routes of experts are not reported; leave it out")] = None

    structured_outputs: NoGuide = None
    guided_json: NoGuide = None
    guided_regex: NoGuide = None
    guided_choice: NoGuide = None
    guided_grammar: NoGuide = None
    guided_decoding_backend: NoGuide = None
    guided_whitespace_pattern: NoGuide = None

    kv_transfer_params: Annotated[None, only(_NO_TRANSFER)] = None
    ec_transfer_params: Annotated[None, only(_NO_TRANSFER)] = None
    vllm_xargs: Annotated[NoSettings | None, only("there are no extensions of vLLM here; leave it out")] = None


class InertInChat(InertInGeneration):
    """Of chat alone."""

    add_special_tokens: Annotated[
        Off | None, only("the chat template writes the special tokens; leave it out or send false")
    ] = None
    echo: Annotated[Off | None, only("the last message is not repeated; leave it out or send false")] = None
    documents: Annotated[Nothing | None, only("write documents into the messages, and leave this out")] = None
    media_io_kwargs: Annotated[NoSettings | None, only(NO_MEDIA)] = None
    include_reasoning: Annotated[
        On | None, only("reasoning is not told apart from the answer; leave it out or send true")
    ] = None
    return_prompt_text: Annotated[Off | None, only("POST /tokenize and /detokenize tell it; leave this out")] = None


class InertInCompletions(InertInGeneration):
    """Of completions alone."""

    add_special_tokens: Annotated[
        On | None, only("a text gets its special tokens; leave it out, or send the prompt as token ids")
    ] = None
    prompt_embeds: Annotated[None, only("a prompt is a text or token ids; leave it out")] = None


class InertInEmbeddings(InertEverywhere):
    """Of embeddings alone."""

    add_special_tokens: Annotated[
        On | None, only("a text gets its special tokens; leave it out, or send the input as token ids")
    ] = None
    normalize: Annotated[On | None, only("vectors have the length 1; leave it out or send true")] = None
    use_activation: Annotated[On | None, only("vectors have the length 1; leave it out or send true")] = None
    embed_dtype: Annotated[Literal["float32"] | None, only("vectors are float32; leave it out or send float32")] = None
    endianness: Annotated[
        Literal["native", "little"] | None, only("base64 is little-endian; leave it out or send little")
    ] = None
