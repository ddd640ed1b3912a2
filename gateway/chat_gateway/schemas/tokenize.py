"""The bodies of `POST /tokenize` and `POST /detokenize`, and the answers. Source: vLLM's OpenAI server."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from chat_gateway.schemas.chat import Message
from chat_gateway.schemas.common import ModelName, Strict, TokenId

_ONLY_ONE: Final = "May be left out where only one chat model is served."


class TokenizeRequest(Strict):
    """A text, or a conversation as the model would see it; exactly one of the two."""

    model: ModelName | None = Field(None, description=_ONLY_ONE)
    messages: list[Message] | None = Field(None, min_length=1)
    prompt: str | None = Field(None, validate_default=True)
    add_special_tokens: bool | None = Field(
        None, description="By default true for a prompt, and false for messages, whose template writes them."
    )
    add_generation_prompt: bool | None = Field(None, description="Only for messages; true by default.")

    @field_validator("prompt")
    @classmethod
    def _exactly_one(cls, value: str | None, info: ValidationInfo) -> str | None:
        has_messages = info.data.get("messages", ()) is not None  # which may also have been refused
        if value is None and not has_messages:
            raise PydanticKnownError("missing")
        if value is not None and has_messages:
            raise PydanticCustomError("conflict", "send either prompt or messages, and not both")
        return value

    @field_validator("add_generation_prompt")
    @classmethod
    def _only_for_messages(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value is not None and info.data.get("prompt") is not None:
            raise PydanticCustomError("conflict", "only for messages; leave it out")
        return value


class DetokenizeRequest(Strict):
    """Token ids of a model."""

    model: ModelName | None = Field(None, description=_ONLY_ONE)
    tokens: list[TokenId] = Field(min_length=1)


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeResponse(BaseModel):
    prompt: str
