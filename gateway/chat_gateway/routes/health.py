"""For probes and scrapers."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header
from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response

import triton_chat
from chat_gateway.dependencies import BackendDep, MetricsDep, SettingsDep
from chat_gateway.errors import unavailable

router = APIRouter(tags=["operations"])


class Live(BaseModel):
    status: Literal["live"] = "live"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    models: list[str]


class Version(BaseModel):
    version: str


@router.get("/health/live")
async def live() -> Live:
    """The process answers. Asks nobody."""
    return Live()


@router.get("/health/ready")
async def ready(backend: BackendDep, settings: SettingsDep) -> Ready:
    """Requests can be served: Triton answers, has a chat model that is ready, and the gateway is not stopping."""
    models = [model.id for model in await backend.models() if model.kind == "chat"]
    if not models:
        raise unavailable("Triton has no chat model that is ready", settings.retry_after)
    return Ready(models=models)


@router.get("/version")
async def version() -> Version:
    return Version(version=triton_chat.__version__)


@router.get("/metrics", response_class=PlainTextResponse)
async def scrape(metrics: MetricsDep, accept: Annotated[str, Header()] = "") -> Response:
    """Prometheus' families, in the format that the scraper asks for."""
    content, content_type = metrics.exposition(accept)
    return Response(content, headers={"Content-Type": content_type})
