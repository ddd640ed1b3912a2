"""What routes ask for in their signatures."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import Request

from chat_gateway.errors import unavailable
from chat_gateway.http.metrics import Metrics
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.triton import Upstream


async def _settings(request: Request) -> GatewaySettings:
    return cast("GatewaySettings", request.app.state.settings)


async def _upstream(request: Request) -> Upstream:
    if request.app.state.draining:
        retry_after = request.app.state.settings.retry_after
        raise unavailable("the gateway is stopping and accepts no new requests; try again later", retry_after)
    return cast("Upstream", request.app.state.upstream)


async def _metrics(request: Request) -> Metrics:
    return cast("Metrics", request.app.state.metrics)


async def _request_id(request: Request) -> str:
    return cast("str", request.state.request_id)


SettingsDep = Annotated[GatewaySettings, Depends(_settings)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
UpstreamDep = Annotated[Upstream, Depends(_upstream)]
RequestIdDep = Annotated[str, Depends(_request_id)]
"""The id in `X-Request-Id`: printable ASCII without spaces and brackets, at most 128 characters."""
