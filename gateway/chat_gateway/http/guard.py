"""Whatever is raised becomes an `ApiError`, here and nowhere else."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args

from fastapi.exceptions import RequestValidationError
from pydantic_core.core_schema import ErrorType
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from chat_gateway.errors import SHOWN, ApiError, from_client
from chat_gateway.errors import ErrorType as ApiErrorType
from chat_gateway.http.exchange import CLIENT_CLOSED_REQUEST, Exchange
from chat_gateway.http.metrics import route_of
from triton_chat.errors import TritonChatError

_SENTENCES = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this request",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
}
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "unsupported": "unsupported_value",
    "form": "invalid_type",
}
"""OpenAI's words for what pydantic and `schemas.fields` find; of the others see `_code`."""
_WORDED_BY_PYDANTIC = set(get_args(ErrorType)) - {"value_error", "assertion_error"}

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

    def translate(self, error: Exception, scope: Scope) -> ApiError:
        match error:
            case ApiError():
                return error
            case TritonChatError():
                return from_client(error, self._retry_after)
            case RequestValidationError():
                return _invalid(error.errors(), error.body)
            case HTTPException():
                return _http(error, scope, self._methods.get(route_of(scope), ()))
            case ClientDisconnect():
                return ApiError(CLIENT_CLOSED_REQUEST, "the client left", "server_error", code="cancelled")
            case _:
                sentence = "the gateway failed while it worked on this request"
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
        except Exception as error:  # noqa: BLE001 - every caller gets an answer, and no log a caller's text
            answer = self._errors.translate(error, scope)
            if answer.status == 500 or exchange.status is not None:
                _log.error(
                    "a request failed in a way not foreseen", exc_info=error, extra={"request_id": exchange.request_id}
                )
            if exchange.status is None:
                await answer.response()(scope, receive, send)
            # Else the server closes the connection, which tells the caller that the answer is not complete.


def _http(error: HTTPException, scope: Scope, methods: Collection[str]) -> ApiError:
    """What Starlette refuses: an unknown route, or another method than a route has.

    For Starlette each method of a path is a route, and it names those of the first one alone in `Allow`.
    """
    target = f"{scope['method'][:SHOWN]} {scope['path'][:SHOWN]}"
    match error.status_code:
        case 404:
            return ApiError(404, f"there is no such route: {target}", code="unknown_url")
        case 405:
            sentence = f"the route does not have this method: {target}"
            allow = {"Allow": ", ".join(sorted(methods))} if methods else error.headers
            return ApiError(405, sentence, code="method_not_allowed", headers=allow)
        case status:
            kind: ApiErrorType = "server_error" if status >= 500 else "invalid_request_error"
            return ApiError(status, str(error.detail), kind, code=HTTPStatus(status).name.lower())


def _invalid(found: Sequence[Mapping[str, Any]], body: object) -> ApiError:
    """The first thing that is wrong with a body, by the name of its field."""
    error = found[0]
    source, *location = error["loc"]
    if source == "query":
        body = {location[0]: error.get("input")}
    param = _param(location, body, ends_outside=error["type"] == "missing")
    sentence = _sentence(error)
    message = f"{param}: {sentence}" if param else f"the body {sentence}"
    return ApiError(400, message, param=param, code=_code(error["type"]))


def _code(kind: str) -> str:
    if kind in _CODES:
        return _CODES[kind]
    return "invalid_type" if kind.endswith(("_type", "_from_float", "_parsing")) else "invalid_value"


def _param(location: Sequence[str | int], body: Any, *, ends_outside: bool) -> str | None:
    """A place in the body as OpenAI writes it, `messages[0].content`, without the parts that name a member of a union.

    Args:
        ends_outside: the last part names what is not there.
    """
    name = ""
    for number, part in enumerate(location, start=1):
        if isinstance(body, list) and isinstance(part, int) and part < len(body):
            name, body = f"{name}[{part}]", body[part]
        elif isinstance(body, Mapping) and (part in body or (ends_outside and number == len(location))):
            name, body = f"{name}.{part}", body.get(part)
    return name.removeprefix(".")[:SHOWN] or None


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] in _SENTENCES:
        return _SENTENCES[error["type"]]
    text = re.sub(r"^Value error, |^Assertion failed, | after validation", "", error["msg"])
    if error["type"] not in _WORDED_BY_PYDANTIC:
        return text
    value = error.get("input")
    scalar = value is None or isinstance(value, str | int | float)
    shown = json.dumps(value, ensure_ascii=False) if scalar else ""
    return re.sub(r"^\w+ should ", "must ", text) + (f", not {shown}" if 0 < len(shown) <= SHOWN else "")
