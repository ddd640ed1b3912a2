"""`/v1/models`: what callers may name in `model`."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter
from openai.types import Model
from pydantic import BaseModel

from chat_gateway.answers.replies import readable
from chat_gateway.errors import SHOWN, ApiError
from chat_gateway.http.dependencies import UpstreamDep
from chat_gateway.upstream.triton import ServedModel, Upstream

router = APIRouter(tags=["models"])


class Card(Model):
    """OpenAI's type, with what vLLM adds."""

    root: str | None
    """The checkpoint or adapter: its id on a hub, or the name of its folder."""
    parent: str | None
    """Of an adapter: the model that it is of."""
    max_model_len: int | None
    permission: list[Any]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Card]


@readable(router, "/v1/models")
async def list_models(upstream: UpstreamDep) -> ModelList:
    """The models that are ready, each under its name in Triton and its aliases, and their adapters."""
    cards = await asyncio.gather(*(_card(served, upstream) for served in await upstream.models()))
    return ModelList(object="list", data=cards)


@readable(router, "/v1/models/{model_id:path}")
async def retrieve_model(model_id: str, upstream: UpstreamDep) -> Card:
    for served in await upstream.models():
        if served.id == model_id:
            return await _card(served, upstream)
    raise ApiError(404, f"there is no model {model_id[:SHOWN]!r}", param="model", code="model_not_found")


async def _card(served: ServedModel, upstream: Upstream) -> Card:
    details = await upstream.details(served)
    return Card(
        id=served.id,
        created=upstream.began,
        object="model",
        owned_by="triton",
        root=served.adapter.root if served.adapter else details and details.root,
        parent=served.target if served.adapter else None,
        max_model_len=details and details.max_model_len,
        permission=[],
    )
