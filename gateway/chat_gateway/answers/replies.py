"""Answers in one piece, routes that are read, and what the published schema says of answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_STREAM: Final[dict[str, Any]] = {"content": {"text/event-stream": {}}}
"""Without a schema: OpenAPI 3.1 has none for the events of a stream."""


def reply(answer: BaseModel) -> Response:
    """What was set of it, as JSON."""
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def described(answer: type[BaseModel], *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route."""
    return {200: {"model": answer, **(_STREAM if streams else {})}}


def readable(router: APIRouter, path: str) -> Callable[[Endpoint], Endpoint]:
    """A route for GET and, because load balancers ask with it, HEAD, which the published schema need not list."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        router.add_api_route(path, endpoint, methods=["GET"], response_model_exclude_unset=True)
        router.add_api_route(
            path, endpoint, methods=["HEAD"], response_model_exclude_unset=True, include_in_schema=False
        )
        return endpoint

    return decorate
