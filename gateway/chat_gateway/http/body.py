"""The JSON body of a request: read within limits, checked, parsed once. Every failure is an `ApiError`.

Routes that take a body use `APIRouter(route_class=JsonRoute)` and declare a pydantic model as usual.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from email.message import EmailMessage
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat_gateway.errors import ApiError
from chat_gateway.upstream.waits import within

MAX_DEPTH = 201
"""Levels of nesting that pydantic's parser takes."""


class BodyLimit:
    """Refuses a body that is too large, by its announced length or else while it is read, or that takes too long."""

    def __init__(self, app: ASGIApp, max_bytes: int, limit_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        self._check(int(announced) if announced.isdecimal() else 0)
        deadline = time.monotonic() + self._limit_s
        received, complete = 0, False

        async def limited_receive() -> Message:
            nonlocal received, complete
            message = await (receive() if complete else self._before(deadline, receive))
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            self._check(received)
            return message

        await self._app(scope, limited_receive, send)

    async def _before(self, deadline: float, receive: Receive) -> Message:
        message = await within(deadline - time.monotonic(), receive())
        if message is not None:
            return message
        sentence = f"the body did not arrive within {self._limit_s:g} seconds"
        raise ApiError(408, sentence, code="request_timeout", headers={"Connection": "close"})

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            sentence = f"the body is too large; at most {self._max_bytes} bytes are allowed"
            raise ApiError(413, sentence, code="request_too_large")


class JsonRoute(APIRoute):
    """Reads the body with `read_json` before FastAPI does, which would take other types and NaN.

    The fields of its model are all that there are, unless the settings say to ignore others.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler
        model = self.body_field.field_info.annotation

        async def read_then_handle(request: Request) -> Response:
            value = await read_json(request)
            if request.app.state.settings.unknown_fields == "ignore":
                value = _known(value, model)
            return await handler(_Parsed(request, await request.body(), value))

        return read_then_handle


class _Parsed(Request):
    """A request whose body has been read and parsed already."""

    def __init__(self, request: Request, body: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._given = body
        self._value = value

    async def body(self) -> bytes:
        return self._given

    async def json(self) -> Any:
        return self._value


async def read_json(request: Request) -> Any:
    """The parsed body. Its size is limited where it is read, see `BodyLimit`.

    Raises:
        ApiError: 413 too large; 415 another type or encoding; 400 empty or not JSON, which here has no NaN, no lone
            surrogates and at most `MAX_DEPTH` levels.
    """
    _check_type(request)
    body = await request.body()
    if not body:
        raise ApiError(400, "the body is empty: send a JSON object", code="invalid_json")
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


def _known(value: Any, model: object) -> Any:
    """Of an object, the fields that a request has."""
    if not (isinstance(value, dict) and isinstance(model, type) and issubclass(model, BaseModel)):
        return value
    return {name: part for name, part in value.items() if name in model.model_fields}


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type")
    if given is None:
        raise _unsupported("the header Content-Type is missing: send application/json")
    header = EmailMessage()
    header["content-type"] = given
    if header.get_content_type() != "application/json":
        raise _unsupported(f"the content type must be application/json, not {header.get_content_type()[:100]!r}")
    if header.get_content_charset("utf-8") not in {"utf-8", "utf8", "us-ascii"}:
        raise _unsupported("the character set of the body must be UTF-8")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise _unsupported("the body must not be compressed")


def _unsupported(sentence: str) -> ApiError:
    return ApiError(415, sentence, code="unsupported_media_type")
