"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from chat_gateway.backend import Backend
from chat_gateway.settings import GatewaySettings


def create_app(settings: GatewaySettings) -> FastAPI:
    """The application; it connects to Triton when it is first asked to."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.backend = Backend(settings)
        yield
        await app.state.backend.close()

    app = FastAPI(title="triton-chat gateway", lifespan=lifespan)
    app.state.settings = settings
    return app
