"""Everything that can go wrong, in one family; `from_status` and `from_text` are the only places that map to it.

An error in a stream comes as text without a code, both Triton's own (triton-inference-server/core) and those of
`chat`, whose texts for a caller's mistakes begin with the name of the field. Triton 24.09 and newer can end the stream
with a gRPC status instead (request header `triton_grpc_error`); that is off by default because tritonserver 2.51 dies
of it (see `wire.STATUS_METADATA`), and errors found before queueing come as text even then.
"""

from __future__ import annotations

import re


class TritonChatError(Exception):
    """Base of every error of this package."""


class InvalidRequestError(TritonChatError, ValueError):
    """The request itself is wrong: a parameter, a shape, a prompt longer than the context."""


class ContextLengthError(InvalidRequestError):
    """The prompt, or the prompt and the tokens asked for, exceed the model's context."""


class ModelNotFoundError(TritonChatError):
    """The server has no such model, or no usable version of it."""


class OverloadedError(TritonChatError):
    """The server's queue is full, or the request waited in it for too long. Trying again later makes sense."""


class ServerUnavailableError(TritonChatError):
    """Nobody answers at the address, or the server is starting or stopping."""


class ServerStoppingError(ServerUnavailableError):
    """The server answers, but takes nothing new, because it is starting or stopping."""


class RequestCancelledError(TritonChatError):
    """The request was cancelled, here or on the server, before the answer was complete."""


class StreamTimeoutError(TritonChatError, TimeoutError):
    """A time limit of the client passed: the whole request, its first token, or the wait between two tokens."""


class EngineError(TritonChatError):
    """The server failed while working on the request, or answered something that is not an answer."""


_REQUEST_ID = re.compile(r"^\[request id: [^\]]*\]\s*")
_STACK = re.compile(r"\s*\n+At:\n.*", re.DOTALL)

_FIELD = r"(?!error|internal|failed)(?-i:[a-z_]\w*)(?:\.\w+|\[\d+\])*"
"""A name as in `messages.0.content` or `messages[0].content`, which begins in lower case, unlike an exception's."""

_BY_TEXT: tuple[tuple[re.Pattern[str], type[TritonChatError]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), error)
    for pattern, error in (
        (r"maximum context length is \d+ tokens", ContextLengthError),
        (rf"^(?:row \d+: )?{_FIELD}(?:, {_FIELD})*: |: unknown parameter", InvalidRequestError),
        (r"exceeds maximum queue size|request timeout expired|as many as allowed", OverloadedError),
        (r"no available versions", ServerStoppingError),  # of a server that stops, or a model that failed to load
        (r"unknown model", ModelNotFoundError),
        (r"engine (?:has )?failed|internal error|failed to process the request|stub process", EngineError),
        (r"not ready|stopped accepting new|server is stopping|shutting down|draining", ServerStoppingError),
        (r"unexpected shape|unexpected inference input|data-type is|expected \d+ inputs", InvalidRequestError),
        (r"batch dimension|larger than max|models with decoupled", InvalidRequestError),
        (r"^(?:row \d+: )?the request was cancelled|locally cancelled|channel closed", RequestCancelledError),
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
    "INTERNAL": (EngineError, TritonChatError),  # BLS on tritonserver 2.51 makes every code INTERNAL
}
"""What a code may mean; the first is meant where the text does not tell."""

_CONNECTION = re.compile(
    r"failed to connect|connection refused|socket closed|resolv|name resolution|connection reset|broken pipe|goaway"
    r"|upstream connect|no healthy upstream|handshak|ssl|tls|transport|too many pings|recvmsg|channel closed",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """Triton's message without its request id prefix and without a Python stack, which names files of the server."""
    return _STACK.sub("", _REQUEST_ID.sub("", text)).strip() or "the server gave no reason"


def from_text(text: str) -> TritonChatError:
    """An error that came without a code: as the `error_message` of a stream response."""
    for pattern, error in _BY_TEXT:
        if pattern.search(text):
            return error(clean(text))
    return EngineError(clean(text))


def from_status(code: str, details: str, target: str) -> TritonChatError:
    """The error for a gRPC status.

    Args:
        code: name of the gRPC status code, such as `UNAVAILABLE`.
        details: the status message.
        target: `host:port` as the user gave it; only for messages.
    """
    if code == "UNAVAILABLE" and _CONNECTION.search(details):
        return ServerUnavailableError(unreachable(target, details))
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
        return f"cannot agree on TLS with {target}: grpcs:// is for TLS, grpc:// for none"
    if "failed to connect" in text or "refused" in text:
        return f"cannot reach tritonserver at {target}: is it running? start it with `make serve`"
    return f"the connection to tritonserver at {target} broke: {clean(details)}"
