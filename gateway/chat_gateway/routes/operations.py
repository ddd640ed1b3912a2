"""For the people who run it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response

import triton_chat
from chat_gateway.answers.replies import readable
from chat_gateway.http.dependencies import MetricsDep

router = APIRouter(tags=["operations"])


class Version(BaseModel):
    version: str


@readable(router, "/version")
async def version() -> Version:
    return Version(version=triton_chat.__version__)


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=PlainTextResponse)
async def scrape(metrics: MetricsDep, accept: Annotated[str, Header()] = "") -> Response:
    """Prometheus' families, in the format that the scraper asks for."""
    content, content_type = metrics.exposition(accept)
    return Response(content, headers={"Content-Type": content_type})
