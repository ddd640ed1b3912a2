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


def mistakes(model: type[BaseModel], body: dict[str, Any]) -> dict[tuple[str | int, ...], str]:
    """Place and sentence of everything that is wrong."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return {error["loc"]: error["msg"] for error in caught.value.errors()}
