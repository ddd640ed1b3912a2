"""The body of `POST /v1/embeddings`. Source: `openai.types.embedding_create_params`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from chat_gateway.schemas.common import ModelName, Strict, User
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
