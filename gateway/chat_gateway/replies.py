"""Answers in one piece, and what the published schema says of answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from starlette.responses import Response


def reply(answer: BaseModel) -> Response:
    """What was set of it, as JSON. It was checked when it was built, or meant to differ from its type."""
    return Response(answer.model_dump_json(exclude_unset=True, warnings=False), media_type="application/json")


def described(answer: type[BaseModel], *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route."""
    events = {"content": {"text/event-stream": {"schema": {"type": "string"}}}} if streams else {}
    return {200: {"model": answer, **events}}
