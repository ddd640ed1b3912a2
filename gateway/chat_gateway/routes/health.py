"""For probes, in the ways in which they ask. The only routes that need no key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from chat_gateway.answers.replies import readable
from chat_gateway.errors import unavailable
from chat_gateway.http.dependencies import SettingsDep, UpstreamDep
from chat_gateway.upstream.triton import NO_CHAT_MODEL

router = APIRouter(tags=["health"])


class Live(BaseModel):
    status: Literal["live"]


class Ready(BaseModel):
    status: Literal["ready"]
    models: list[str]


@readable(router, "/health/live")
async def live() -> Live:
    """The process answers. Asks nobody."""
    return Live(status="live")


@readable(router, "/health/ready")
@readable(router, "/health")
@readable(router, "/ping")
@router.post("/ping")
async def ready(upstream: UpstreamDep, settings: SettingsDep) -> Ready:
    """Requests can be served: Triton answers, has a chat model that is ready, and the gateway is not stopping."""
    models = [model.id for model in await upstream.models() if model.kind == "chat"]
    if not models:
        raise unavailable(NO_CHAT_MODEL, settings.retry_after)
    return Ready(status="ready", models=models)
