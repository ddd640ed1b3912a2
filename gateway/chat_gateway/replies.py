"""Answers in one piece, and what the published schema says of answers."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from starlette.responses import Response

_STREAM: Final[dict[str, Any]] = {"content": {"text/event-stream": {}}}
"""Without a schema: OpenAPI 3.1 has none for the events of a stream."""


def reply(answer: BaseModel) -> Response:
    """What was set of it, as JSON."""
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def described(answer: type[BaseModel], *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route."""
    return {200: {"model": answer, **(_STREAM if streams else {})}}
