"""One error for everything the gateway refuses or could not do, in OpenAI's body; what is raised is mapped to it here.

Source: OpenAI API reference, "Error codes"; `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal, TypeVar, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core.core_schema import ErrorType as PydanticErrorType
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from triton_chat import errors

E = TypeVar("E", bound=errors.InvalidRequestError)

SHOWN = 100
"""Characters of a caller's text that a message repeats."""

ErrorType = Literal[
    "invalid_request_error", "authentication_error", "rate_limit_error", "server_error", "service_unavailable_error"
]


class ApiError(Exception):
    """What a caller is told, and with which status.

    Args:
        status: HTTP status.
        message: a sentence for the caller; no path, address, key or text of somebody else.
        kind: OpenAI's `type`.
        code: a stable word for programs, OpenAI's where it has one, such as `model_not_found`.
        param: the field that is wrong, if it is one.
        retry_after: seconds after which to try again; becomes the header.
        headers: others, such as the `Allow` of a 405.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: ErrorType = "invalid_request_error",
        *,
        code: str,
        param: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def unavailable(message: str, retry_after: int, code: str = "unavailable") -> ApiError:
    """The gateway or the model server cannot do it now."""
    return ApiError(503, message, "service_unavailable_error", code=code, retry_after=retry_after)


def overloaded(message: str, retry_after: int) -> ApiError:
    """More is asked for than can be served in good time."""
    return ApiError(429, message, "rate_limit_error", code="overloaded", retry_after=retry_after)


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
_WORDED_BY_PYDANTIC = set(get_args(PydanticErrorType)) - {"value_error", "assertion_error"}


class ErrorObject(BaseModel):
    message: str
    type: ErrorType
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """What the published schema says of `ApiError.body`."""

    error: ErrorObject


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request was refused."},
    "5XX": {"model": ErrorBody, "description": "The request could not be served."},
}


def from_client(error: errors.TritonChatError, retry_after: int) -> ApiError:
    """Maps the SDK's errors, see the table in docs/gateway.md. 499 is for the log alone: that caller has gone."""
    text = str(error)
    match error:
        case errors.InvalidRequestError():
            return ApiError(400, text, param=error.field, code=error.code)
        case errors.ModelNotFoundError():
            return ApiError(404, text, param="model", code="model_not_found")
        case errors.OverloadedError():
            return overloaded(text, retry_after)
        case errors.RequestCancelledError():
            return ApiError(499, text, "server_error", code="cancelled")
        case errors.StreamTimeoutError():
            return unavailable(text, retry_after, "timeout")
        case errors.ServerUnavailableError():
            # The SDK's text names the address of the server, which is nobody's business out here.
            return unavailable("the model server cannot be reached or is stopping; try again later", retry_after)
        case errors.NotComputedError():
            sentence = "the model could not compute this request; try again later, or change the request"
            return unavailable(sentence, retry_after, error.code)
        case _:
            sentence = "the model server failed while processing this request; try again later"
            return unavailable(sentence, retry_after, "engine_failed")


def renamed(error: E, names: Mapping[str, str]) -> E:
    """The same error in the caller's words.

    Args:
        names: the model's names of fields, or places in them, to the caller's. What is below goes along; the longest
            name that fits is meant.
    """
    field = error.field or ""
    above = [name for name in names if re.match(rf"{re.escape(name)}(?![^.\[])", field)]
    if not above:
        return error
    name = max(above, key=len)
    return error.placed(field=names[name] + field.removeprefix(name), row=error.row)


def from_http(error: HTTPException, scope: Scope, methods: Collection[str]) -> ApiError:
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
            kind: ErrorType = "server_error" if status >= 500 else "invalid_request_error"
            return ApiError(status, str(error.detail), kind, code=HTTPStatus(status).name.lower())


def from_body(invalid: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body, by the name of its field."""
    error, body = invalid.errors()[0], invalid.body
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
