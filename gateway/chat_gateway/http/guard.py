"""Whatever is raised ends as an answer, or ends an answer that has begun."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from chat_gateway.errors import ApiError, from_body, from_client, from_http
from chat_gateway.http.exchange import CLIENT_CLOSED_REQUEST, Exchange
from chat_gateway.http.metrics import route_of
from chat_gateway.http.stopping import cut_short, is_stopping
from triton_chat.errors import TritonChatError

_log = logging.getLogger(__name__)


class Errors:
    """Turns what is raised into responses."""

    HANDLED: tuple[type[Exception], ...] = (ApiError, TritonChatError, RequestValidationError, HTTPException)
    """What FastAPI brings to `respond`, from where it was raised in a route. `Guard` brings the rest."""

    def __init__(self, retry_after: int, methods: Mapping[str, Collection[str]] | None = None) -> None:
        """Takes the seconds after which to try again, and the methods of each route by its template."""
        self._retry_after = retry_after
        self._methods = methods or {}

    async def respond(self, request: Request, error: Exception) -> Response:
        return self.translate(error, request.scope).response()

    def translate(self, error: BaseException, scope: Scope) -> ApiError:
        match error:
            case ApiError():
                return error
            case TritonChatError():
                return from_client(error, self._retry_after)
            case RequestValidationError():
                return from_body(error)
            case HTTPException():
                return from_http(error, scope, self._methods.get(route_of(scope), ()))
            case ClientDisconnect():
                return ApiError(CLIENT_CLOSED_REQUEST, "the client left", "server_error", code="cancelled")
            case asyncio.CancelledError():
                return cut_short(self._retry_after)
            case _:
                sentence = "the gateway failed while processing this request"
                return ApiError(500, sentence, "server_error", code="internal_error")


class Guard:
    """The last that sees an exception. Answers it, or ends a response that has begun."""

    def __init__(self, app: ASGIApp, errors: Errors) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.of(scope)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError as stop:
            if not is_stopping(scope):
                raise
            if exchange.status is None:
                await self._errors.translate(stop, scope).response()(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - every caller gets an answer, and no log a caller's text
            answer = self._errors.translate(error, scope)
            if answer.status == 500 or exchange.status is not None:
                _log.error("a request failed unexpectedly", exc_info=error, extra={"request_id": exchange.request_id})
            if exchange.status is None:
                await answer.response()(scope, receive, send)
            # Else the server closes the connection, which tells the caller that the answer is not complete.
