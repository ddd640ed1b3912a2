"""Everything that can go wrong, in one family; `from_status` and `from_text` are the only places that map to it.

An error of our own models says what it is in data at the end of its text, which `chat_engine.errors` writes and
`_read` reads: ` [code=invalid_value field=messages[0].content row=1]`. An error of Triton's own (see
triton-inference-server/core) has nothing but its words, and those are what `_TRITONS` looks at.

An error in a stream comes as text without a status. Triton 24.09 and newer can end the stream with a gRPC status
instead (request header `triton_grpc_error`); that is off by default because tritonserver 2.51 dies of it (see
`wire.STATUS_METADATA`), and errors found before queueing come as text even then.
"""

from __future__ import annotations

import re
from typing import ClassVar, TypeVar
from urllib.parse import unquote

E = TypeVar("E", bound="TritonChatError")


class TritonChatError(Exception):
    """Base of every error of this package.

    Args:
        sentence: for people; without the names of field and row.
        field: of the request, as `messages[0].content`, in the names of whoever raises it.
        row: of a request that has several, or of the inputs of `embed`, from 0.
    """

    code: ClassVar[str] = "error"
    """A stable word for programs, of the class; a code that this version does not know becomes an `EngineError`."""

    def __init__(self, sentence: str = "", *, field: str | None = None, row: int | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.field = field
        self.row = row

    def __str__(self) -> str:
        row = "" if self.row is None else f"row {self.row}: "
        field = "" if self.field is None else f"{self.field}: "
        return f"{row}{field}{self.sentence}"

    def placed(self: E, *, field: str | None, row: int | None = None) -> E:
        """The same error at another place."""
        return type(self)(self.sentence, field=field, row=row)


class InvalidRequestError(TritonChatError, ValueError):
    """The request itself is wrong: a parameter, a shape, a prompt longer than the context."""

    code = "invalid_value"


class ContextLengthError(InvalidRequestError):
    """The prompt, or the prompt and the tokens asked for, exceed the model's context."""

    code = "context_length_exceeded"


class ModelNotFoundError(TritonChatError):
    """The server has no such model, or no usable version of it."""

    code = "model_not_found"


class OverloadedError(TritonChatError):
    """The server's queue is full, or the request waited in it for too long. Trying again later makes sense."""

    code = "overloaded"


class ServerUnavailableError(TritonChatError):
    """The address does not answer, or the server is starting or stopping."""

    code = "unavailable"


class ServerUnreachedError(ServerUnavailableError):
    """No connection came about, so nothing was sent."""


class ServerSilentError(ServerUnreachedError):
    """The attempt to connect was not even refused: nothing came back in time. The server, or its network, is stuck."""


class ServerStoppingError(ServerUnavailableError):
    """The server answers, but takes nothing new, because it is starting or stopping."""

    code = "stopping"


class RequestCancelledError(TritonChatError):
    """The request was cancelled, here or on the server, before the answer was complete."""

    code = "cancelled"


class StreamTimeoutError(TritonChatError, TimeoutError):
    """A time limit of the client passed: the whole request, its first token, or the wait between two tokens."""

    code = "timeout"


class EngineError(TritonChatError):
    """The server failed while working on the request, or answered something that is not an answer."""

    code = "engine_failed"


class NotComputedError(EngineError):
    """The model cannot compute this request; it still computes others."""

    code = "not_computed"


_DATA = " [code="
_OURS: dict[str, type[TritonChatError]] = {
    kind.code: kind
    for kind in (
        InvalidRequestError, ContextLengthError, ModelNotFoundError, OverloadedError, ServerStoppingError,
        RequestCancelledError, EngineError, NotComputedError,
    )
}  # fmt: skip

_REQUEST_ID = re.compile(r"^\[request id: [^\]]*\] ?")
_STACK = re.compile(r"\s*\n+At:\n.*", re.DOTALL)

_TRITONS: tuple[tuple[re.Pattern[str], type[TritonChatError]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), error)
    for pattern, error in (
        (r"exceeds maximum queue size|request timeout expired", OverloadedError),
        (r"no available versions", ServerStoppingError),  # of a server that stops, or a model that failed to load
        (r"unknown model", ModelNotFoundError),
        (r"failed to process the request|stub process", EngineError),
        (r"not ready|stopped accepting new|server is stopping", ServerStoppingError),
        (r"unexpected shape|unexpected inference input|data-type is|expected \d+ inputs", InvalidRequestError),
        (r"batch dimension|larger than max|models with decoupled", InvalidRequestError),
        (r"locally cancelled|channel closed|request was cancelled", RequestCancelledError),
    )
)

_BY_CODE: dict[str, tuple[type[TritonChatError], ...]] = {
    "INVALID_ARGUMENT": (InvalidRequestError,),
    "OUT_OF_RANGE": (InvalidRequestError,),
    "UNIMPLEMENTED": (InvalidRequestError,),
    "UNAUTHENTICATED": (InvalidRequestError,),
    "PERMISSION_DENIED": (InvalidRequestError,),
    "NOT_FOUND": (ModelNotFoundError, ServerUnavailableError),
    # A server that stops refuses with it; source: Triton's client README, "GRPC Status Codes During Server Shutdown".
    "CANCELLED": (ServerUnavailableError, RequestCancelledError),
    "UNAVAILABLE": (ServerUnavailableError, OverloadedError),
    "RESOURCE_EXHAUSTED": (OverloadedError, InvalidRequestError),
    "INTERNAL": (EngineError, TritonChatError),  # BLS on tritonserver 2.51 makes every status INTERNAL
}
"""What a code may mean; the first is meant where the text does not tell."""

_CONNECTION = re.compile(
    r"failed to connect|connection refused|socket closed|resolv|name resolution|connection reset|broken pipe|goaway"
    r"|upstream connect|no healthy upstream|handshak|ssl|tls|transport|too many pings|recvmsg|channel closed",
    re.IGNORECASE,
)

_ATTEMPT_TIMED_OUT = "connection attempt timed out"
"""Source: gRPC core, chttp2_connector.cc; the only words for it there."""


def clean(text: str) -> str:
    """Triton's message without its request id prefix and without a Python stack, which names files of the server."""
    return _STACK.sub("", _REQUEST_ID.sub("", text)).strip() or "the server gave no reason"


def from_text(text: str) -> TritonChatError:
    """An error that came without a status: as the `error_message` of a stream response."""
    return _read(text) or next(
        (error(clean(text)) for pattern, error in _TRITONS if pattern.search(text)), EngineError(clean(text))
    )


def _read(text: str) -> TritonChatError | None:
    """The error that one of our own models has written; None for a text of somebody else.

    A code that is not known here is a failure of the server's, as every error is of which nothing is known.
    """
    shown, found, data = _REQUEST_ID.sub("", text).rpartition(_DATA)
    data = _STACK.sub("", data).rstrip()
    if not found or not data.endswith("]"):
        return None
    code, *pairs = data.removesuffix("]").split(" ")
    values = dict(pair.partition("=")[::2] for pair in pairs)
    field = unquote(values["field"]) if "field" in values else None
    row = int(values["row"]) if values.get("row", "").isdecimal() else None
    without_place = shown.removeprefix("" if row is None else f"row {row}: ")
    sentence = without_place.removeprefix("" if field is None else f"{field}: ")
    return _OURS.get(code, EngineError)(sentence, field=field, row=row)


def from_status(code: str, details: str, target: str) -> TritonChatError:
    """The error for a gRPC status.

    Args:
        code: name of the gRPC status code, such as `UNAVAILABLE`.
        details: the status message.
        target: `host:port` as the user gave it; only for messages.
    """
    if (ours := _read(details)) is not None:
        return ours
    if code == "UNAVAILABLE" and _ATTEMPT_TIMED_OUT in details:
        return ServerSilentError(f"{target} does not answer: nothing came back on a new connection")
    if code == "UNAVAILABLE" and _CONNECTION.search(details):
        kind = ServerUnreachedError if "failed to connect" in details.lower() else ServerUnavailableError
        return kind(unreachable(target, details))
    if code == "DEADLINE_EXCEEDED":
        return StreamTimeoutError("the request took longer than its time limit")
    allowed = _BY_CODE.get(code, (EngineError,))
    by_text = from_text(details)
    return by_text if isinstance(by_text, allowed) else allowed[0](clean(details))


def unreachable(target: str, details: str) -> str:
    """A sentence for somebody whose server does not answer, with the likely reason."""
    text = details.lower()
    if "resolv" in text or "lookup" in text:
        return f"cannot find the host of {target}: is the name right?"
    if "socket closed" in text and "failed to connect" in text:
        return f"{target} answers, but not with gRPC: Triton's gRPC port is 8001 by default, 8000 is HTTP"
    if "ssl" in text or "handshak" in text or "tls" in text:
        return f"the TLS handshake with {target} failed: use grpcs:// for TLS, grpc:// without"
    if "failed to connect" in text or "refused" in text:
        return f"cannot reach tritonserver at {target}: is it running? start it with `make serve`"
    return f"the connection to tritonserver at {target} broke: {clean(details)}"
