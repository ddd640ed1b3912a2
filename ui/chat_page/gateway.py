"""The way to the gateway, with the openai package."""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI, Timeout

from chat_page.settings import PageSettings

_CONNECT_S = 5.0
_CONTROL_S = 5.0
_SILENCE_S = 600.0
"""The gateway has limits of its own, and ends a silence with a comment long before this one."""
_EMBEDS = "embed"
"""In the name of a model that does not chat; the API has no better way to tell them apart."""
_NO_KEY = "none"
"""Sent where the page has none, lest the package takes OPENAI_API_KEY, which is for somebody else."""


class NoModelError(Exception):
    """The gateway answers, but serves no chat model."""


class NotAGatewayError(Exception):
    """What answers does not speak the OpenAI API."""


class BrokenOffError(Exception):
    """The stream ended before the answer did."""


def connect(settings: PageSettings) -> AsyncOpenAI:
    """A client for one event loop. It never tries again by itself: the user sees what happened, and decides."""
    return AsyncOpenAI(
        base_url=settings.base_url,
        api_key=settings.api_key or _NO_KEY,
        max_retries=0,
        timeout=Timeout(_SILENCE_S, connect=_CONNECT_S),
    )


async def list_chat_models(client: AsyncOpenAI) -> tuple[str, ...]:
    """The names of the chat models, never empty; adapters behind the models.

    Raises:
        openai.OpenAIError: the gateway cannot be asked.
        NotAGatewayError: it is none.
        NoModelError: it serves none.
    """
    try:
        page = await client.models.list(timeout=_CONTROL_S)
    except (AttributeError, ValueError) as error:  # so the package stumbles over HTML, and over what is not JSON
        raise NotAGatewayError from error
    by_origin = sorted(page.data, key=lambda model: bool(getattr(model, "parent", None)))
    models = tuple(model.id for model in by_origin if _EMBEDS not in model.id.lower())
    if not models:
        raise NoModelError
    return models


def chat_models(settings: PageSettings) -> tuple[str, ...]:
    """`list_chat_models` for a thread without an event loop."""

    async def ask() -> tuple[str, ...]:
        async with connect(settings) as client:
            return await list_chat_models(client)

    return asyncio.run(ask())
