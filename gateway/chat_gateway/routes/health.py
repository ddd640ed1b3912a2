"""For probes. The only routes that need no key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from chat_gateway.backend import NO_CHAT_MODEL
from chat_gateway.dependencies import BackendDep, SettingsDep
from chat_gateway.errors import unavailable

router = APIRouter(tags=["health"])


class Live(BaseModel):
    status: Literal["live"] = "live"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    models: list[str]


@router.get("/health/live")
async def live() -> Live:
    """The process answers. Asks nobody."""
    return Live()


@router.get("/health/ready")
async def ready(backend: BackendDep, settings: SettingsDep) -> Ready:
    """Requests can be served: Triton answers, has a chat model that is ready, and the gateway is not stopping."""
    models = [model.id for model in await backend.models() if model.kind == "chat"]
    if not models:
        raise unavailable(NO_CHAT_MODEL, settings.retry_after)
    return Ready(models=models)
