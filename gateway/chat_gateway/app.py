"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from opentelemetry.sdk.trace.export import SpanExporter
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import triton_chat
from chat_gateway.errors import ERROR_RESPONSES
from chat_gateway.http.access import Access
from chat_gateway.http.auth import Auth, Keys
from chat_gateway.http.body import BodyLimit
from chat_gateway.http.guard import Errors, Guard
from chat_gateway.http.metrics import Metrics
from chat_gateway.http.tracing import Tracing, otlp_exporter, tracer_provider
from chat_gateway.routes import chat, completions, embeddings, health, models, operations, tokenize
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.triton import Upstream

ROUTERS = tuple(module.router for module in (models, chat, completions, embeddings, tokenize, operations))


def create_app(
    settings: GatewaySettings, *, upstream: Upstream | None = None, span_exporter: SpanExporter | None = None
) -> FastAPI:
    """An application of its own, which shares nothing with others; it connects to Triton when it is first asked to.

    Args:
        settings: see there.
        upstream: another than that of the settings.
        span_exporter: where spans go, if not to the OTLP endpoint of the settings.

    Raises:
        ValueError: the file of keys cannot be read.
    """
    if span_exporter is None and settings.otlp_endpoint is not None:
        span_exporter = otlp_exporter(str(settings.otlp_endpoint))
    provider = tracer_provider(span_exporter) if span_exporter is not None else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await app.state.upstream.close()
        if provider is not None:
            await asyncio.to_thread(provider.shutdown)

    errors = Errors(settings.retry_after, _methods())
    keys = Keys(settings)
    metrics = Metrics()
    app = FastAPI(
        title="triton-chat gateway",
        version=triton_chat.__version__,
        description="The OpenAI API over the chat and embedding models of a Triton server.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        exception_handlers=dict.fromkeys(Errors.HANDLED, errors.respond),
        middleware=[
            *([Middleware(Tracing, provider)] if provider is not None else []),
            Middleware(Access, metrics),
            *([_cors(settings.cors_origins)] if settings.cors_origins else []),
            Middleware(Guard, errors),
            *([Middleware(Auth, keys)] if keys.required else []),
            Middleware(BodyLimit, settings.max_body_bytes, settings.body_timeout),
        ],
    )
    app.state.settings = settings
    app.state.upstream = upstream or Upstream(settings)
    metrics.watch(app.state.upstream.servers)
    app.state.metrics = metrics
    app.state.draining = False
    shown_as_protected = [Security(HTTPBearer(auto_error=False))] if keys.required else []
    app.include_router(health.router, responses=ERROR_RESPONSES)
    for router in ROUTERS:
        app.include_router(router, responses=ERROR_RESPONSES, dependencies=shown_as_protected)
    if settings.unknown_fields == "ignore":
        _allow_unknown_fields(app.openapi())
    return app


def _allow_unknown_fields(document: dict[str, Any]) -> None:
    """In the published schema, which FastAPI keeps."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    for body in (operation["requestBody"] for operation in operations if "requestBody" in operation):
        name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        document["components"]["schemas"][name].pop("additionalProperties", None)


def _methods() -> dict[str, set[str]]:
    """Of each route, by its template."""
    methods: defaultdict[str, set[str]] = defaultdict(set)
    for route in (route for router in (health.router, *ROUTERS) for route in router.routes):
        if isinstance(route, APIRoute):
            methods[route.path_format] |= set(route.methods or ())
    return methods


def _cors(origins: tuple[str, ...]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )
