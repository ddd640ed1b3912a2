"""One error for everything the gateway refuses or could not do, in OpenAI's body.

Source: OpenAI API reference, "Error codes"; `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from starlette.responses import JSONResponse

from chat_gateway.places import split
from triton_chat import errors

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
            place, sentence = split(text)
            too_long = isinstance(error, errors.ContextLengthError)
            return ApiError(400, sentence, param=place, code="context_length_exceeded" if too_long else "invalid_value")
        case errors.ModelNotFoundError():
            return ApiError(404, text, param="model", code="model_not_found")
        case errors.OverloadedError():
            return ApiError(429, text, "rate_limit_error", code="overloaded", retry_after=retry_after)
        case errors.RequestCancelledError():
            return ApiError(499, text, "server_error", code="cancelled")
        case errors.StreamTimeoutError():
            return unavailable(text, retry_after, "timeout")
        case errors.ServerUnavailableError():
            # The SDK's text names the address of the server, which is nobody's business out here.
            return unavailable("the model server cannot be reached or is stopping; try again later", retry_after)
        case _:
            sentence = "the model server failed while it worked on this request; try again later"
            return unavailable(sentence, retry_after, "engine_failed")
