"""Answers in one piece, and what the published schema says of answers."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from starlette.responses import Response

_EVENT: Final = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
"""One event of a stream; `itemSchema` is OpenAPI 3.2's word, which FastAPI uses for its own streams too."""


def reply(answer: BaseModel) -> Response:
    """What was set of it, as JSON."""
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def described(answer: type[BaseModel], *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route."""
    events = {"content": {"text/event-stream": {"itemSchema": _EVENT}}} if streams else {}
    return {200: {"model": answer, **events}}
