"""The body of `POST /v1/embeddings`, and its answer. Source: `openai.types.embedding_create_params`."""

from __future__ import annotations

from typing import Literal

from openai.types import CreateEmbeddingResponse, Embedding
from pydantic import Field, field_validator

from chat_gateway.schemas.common import ModelName, Strict, User, whole
from chat_gateway.schemas.inputs import Inputs


class EmbeddingRequest(Strict):
    """Texts, or their token ids, and the form of their vectors."""

    model: ModelName
    input: Inputs
    dimensions: int | None = Field(
        None, ge=1, le=2**16, description="Keep the first so many components, normalised again."
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: little-endian float32.")
    user: User | None = None

    _whole = field_validator("dimensions", mode="before")(whole)


class Vector(Embedding):
    """OpenAI's type, which does not know base64."""

    embedding: list[float] | str  # type: ignore[assignment]


class EmbeddingResponse(CreateEmbeddingResponse):
    """OpenAI's type with such vectors."""

    data: list[Vector]  # type: ignore[assignment]
