"""One error for everything the gateway refuses or could not do, in OpenAI's body.

Source: OpenAI API reference, "Error codes"; `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

from typing import Literal

from triton_chat import errors

ErrorType = Literal[
    "invalid_request_error", "authentication_error", "rate_limit_error", "server_error", "service_unavailable_error"
]


class ApiError(Exception):
    """What a caller is told, and with which status.

    Args:
        status: HTTP status.
        message: a sentence for the caller; no path, address, key or text of somebody else.
        kind: OpenAI's `type`.
        param: the field that is wrong, if it is one.
        code: OpenAI's `code`, such as `model_not_found`.
        retry_after: seconds after which to try again; becomes the header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: ErrorType = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def from_client(error: errors.TritonChatError, retry_after: int) -> ApiError:
    """Maps the SDK's errors, see the table in docs/architecture.md. 499 is for the log alone: that caller has gone."""
    text = str(error)
    match error:
        case errors.ContextLengthError():
            return ApiError(400, text, code="context_length_exceeded", param=_field(text))
        case errors.InvalidRequestError():
            return ApiError(400, text, param=_field(text))
        case errors.ModelNotFoundError():
            return ApiError(404, text, param="model", code="model_not_found")
        case errors.OverloadedError():
            return ApiError(429, text, "rate_limit_error", code="overloaded", retry_after=retry_after)
        case errors.RequestCancelledError():
            return ApiError(499, text, "server_error", code="cancelled")
        case errors.StreamTimeoutError():
            return ApiError(503, text, "service_unavailable_error", code="timeout", retry_after=retry_after)
        case errors.ServerUnavailableError():
            # The SDK's text names the address of the server, which is nobody's business out here.
            sentence = "the model server cannot be reached or is stopping; try again later"
            return ApiError(503, sentence, "service_unavailable_error", code="unavailable", retry_after=retry_after)
        case _:
            sentence = "the model server failed while it worked on this request; try again later"
            return ApiError(503, sentence, "service_unavailable_error", code="engine_failed", retry_after=retry_after)


def _field(text: str) -> str | None:
    """The field that a message of the model begins with, as in `temperature: must be ...`."""
    name, colon, _ = text.partition(":")
    return name if colon and all(part.isidentifier() or part.isdigit() for part in name.split(".")) else None
