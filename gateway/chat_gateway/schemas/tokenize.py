"""The bodies of `POST /tokenize` and `POST /detokenize`, and the answers. Source: vLLM's OpenAI server."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from chat_gateway.schemas import messages as turns
from chat_gateway.schemas.chat import NO_TEMPLATE, goes_on_or_begins
from chat_gateway.schemas.fields import ModelName, NoSettings, Strict, TokenId, only
from chat_gateway.schemas.inert import NO_MEDIA
from chat_gateway.schemas.messages import Messages
from chat_gateway.schemas.tools import Tool

_ONLY_ONE: Final = "Optional if only one chat model is served."


class TokenizeRequest(Strict):
    """A text, or a conversation as the model would see it; exactly one of the two."""

    model: ModelName | None = Field(None, description=_ONLY_ONE)
    messages: Messages | None = None
    prompt: str | None = Field(None, validate_default=True)
    add_special_tokens: bool | None = Field(
        None, description="Default: true for a prompt, false for messages, whose template adds them."
    )
    add_generation_prompt: bool | None = Field(None, description="Only for messages; true by default.")
    continue_final_message: bool | None = Field(None, description="Only for messages; true: the last one is left open.")
    return_token_strs: bool | None = Field(None, description="True: token_strs contains the string of each token.")

    chat_template: Annotated[None, only(NO_TEMPLATE)] = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Only for messages: what the chat template is given beside them."
    )
    media_io_kwargs: Annotated[NoSettings | None, only(NO_MEDIA)] = None
    mm_processor_kwargs: Annotated[NoSettings | None, only(NO_MEDIA)] = None
    tools: list[Tool] | None = Field(None, description="Only for messages: functions that the model may call.")

    @field_validator("prompt")
    @classmethod
    def _exactly_one(cls, value: str | None, info: ValidationInfo) -> str | None:
        has_messages = info.data.get("messages", ()) is not None  # which may also have been refused
        if value is None and not has_messages:
            raise PydanticKnownError("missing")
        if value is not None and has_messages:
            raise PydanticCustomError("conflict", "send either prompt or messages, not both")
        return value

    @field_validator("continue_final_message")
    @classmethod
    def _goes_on_or_begins(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        return goes_on_or_begins(value, info)

    @field_validator("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools")
    @classmethod
    def _only_for_messages(cls, value: object, info: ValidationInfo) -> object:
        if value not in (None, [], {}) and info.data.get("prompt") is not None:
            raise PydanticCustomError("conflict", "only for messages; leave it out")
        return value

    def to_model(self) -> list[dict[str, object]] | None:
        """The conversation as the model server takes it, if it is one."""
        return None if self.messages is None else turns.to_model(self.messages)

    def tools_of_model(self) -> list[dict[str, object]] | None:
        """As the model server takes them, if there are any."""
        return [tool.to_model() for tool in self.tools] if self.tools else None

    @property
    def names(self) -> dict[str, str]:
        """The fields of the model server that are called otherwise here."""
        return {"text_input": "prompt", **turns.places(self.messages or ())}


class DetokenizeRequest(Strict):
    """Token ids of a model."""

    model: ModelName | None = Field(None, description=_ONLY_ONE)
    tokens: list[TokenId] = Field(min_length=1)


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(BaseModel):
    prompt: str


class TokenizerConfig(BaseModel):
    """What the checkpoint's tokenizer_config.json says, as far as it is no path; more fields than these."""

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
