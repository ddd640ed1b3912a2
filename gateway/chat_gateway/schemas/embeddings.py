"""The body of `POST /v1/embeddings`, and its answer. Source: `openai.types.embedding_create_params`."""

from __future__ import annotations

from typing import Literal

from openai.types import CreateEmbeddingResponse, Embedding
from pydantic import Field

from chat_gateway.schemas.fields import ModelName, User, Whole
from chat_gateway.schemas.inert import InertInEmbeddings
from chat_gateway.schemas.inputs import Inputs


class EmbeddingRequest(InertInEmbeddings):
    """Texts, or their token ids, and the form of their vectors."""

    model: ModelName
    input: Inputs
    dimensions: Whole | None = Field(None, description="Keep this many leading components, normalised again.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: little-endian float32.")
    truncate_prompt_tokens: Whole | None = Field(
        None,
        description="Truncate longer inputs to this many tokens, including special ones; -1: to the model's limit.",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="Side that is cut off: right (default) keeps the beginning, left keeps the end."
    )
    user: User | None = None


class Vector(Embedding):
    """OpenAI's type, which does not know base64."""

    embedding: list[float] | str  # type: ignore[assignment]


class EmbeddingResponse(CreateEmbeddingResponse):
    """OpenAI's type with such vectors."""

    data: list[Vector]  # type: ignore[assignment]
