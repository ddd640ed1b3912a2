from __future__ import annotations

import pytest

from triton_chat import errors


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[request id: <id_unknown>] Exceeds maximum queue size", errors.OverloadedError),
        ("Request timeout expired", errors.OverloadedError),
        ("64 requests are running, as many as allowed; try again later", errors.OverloadedError),
        ("Request for unknown model: 'nope' is not found", errors.ModelNotFoundError),
        ("Request for unknown model: 'x' has no available versions", errors.ServerStoppingError),
        (
            "the prompt has 9 tokens; the maximum context length is 8 tokens, and at least one must be left",
            errors.ContextLengthError,
        ),
        (
            "max_tokens: 9 and a prompt of 8 tokens; the maximum context length is 10 tokens, so at most 2",
            errors.ContextLengthError,
        ),
        ("temperature: must be at least 0 (got -1)", errors.InvalidRequestError),
        ("text: 9 tokens given; this model's maximum context length is 8 tokens", errors.ContextLengthError),
        ("row 3: messages.0.content: holds a NUL character", errors.InvalidRequestError),
        ("messages[0].content: holds a NUL character", errors.InvalidRequestError),
        ("messages, text_input: exactly one is required, both given", errors.InvalidRequestError),
        ("top_q: unknown; allowed are top_p, top_k", errors.InvalidRequestError),
        ("Foo: unknown parameter (value 1); allowed are top_p", errors.InvalidRequestError),
        ("stop: too long (got 'Exceeds maximum queue size')", errors.InvalidRequestError),
        ("[request id: 1] unexpected shape for input 'text_input' for model 'chat'", errors.InvalidRequestError),
        ("unexpected inference input 'zzz' for model 'chat'", errors.InvalidRequestError),
        ("the server is shutting down; try again elsewhere", errors.ServerStoppingError),
        ("the request was cancelled while it waited", errors.RequestCancelledError),
        ("the engine failed while this request was running; it is restarting", errors.EngineError),
        ("Stub process 'chat_0_0' is not healthy.", errors.EngineError),
        ("something nobody has thought of", errors.EngineError),
    ],
)
def test_text_alone(text: str, kind: type[errors.TritonChatError]) -> None:
    assert type(errors.from_text(text)) is kind


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("INVALID_ARGUMENT", "anything", errors.InvalidRequestError),
        (
            "INVALID_ARGUMENT",
            "the prompt has 9 tokens; the maximum context length is 8 tokens",
            errors.ContextLengthError,
        ),
        ("NOT_FOUND", "anything", errors.ModelNotFoundError),
        ("NOT_FOUND", "Request for unknown model: 'x' has no available versions", errors.ServerStoppingError),
        ("UNAVAILABLE", "Server not ready", errors.ServerStoppingError),
        ("UNAVAILABLE", "Request timeout expired", errors.OverloadedError),
        (
            "UNAVAILABLE",
            "GRPC server is shutting down and has stopped accepting new requests",
            errors.ServerStoppingError,
        ),
        ("UNAVAILABLE", "failed to connect to all addresses", errors.ServerUnavailableError),
        ("RESOURCE_EXHAUSTED", "anything", errors.OverloadedError),
        ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max", errors.InvalidRequestError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", errors.StreamTimeoutError),
        ("CANCELLED", "", errors.ServerUnavailableError),
        ("CANCELLED", "Locally cancelled by application!", errors.RequestCancelledError),
        ("CANCELLED", "Channel closed!", errors.RequestCancelledError),
        ("CANCELLED", "row 0: the request was cancelled while it waited", errors.RequestCancelledError),
        ("INTERNAL", "anything", errors.EngineError),
        ("INTERNAL", "ValueError: no field", errors.EngineError),
        ("INTERNAL", "row 0: top_p: must be less than or equal to 1 (got 7)", errors.InvalidRequestError),
        ("UNKNOWN", "anything", errors.EngineError),
    ],
)
def test_status(code: str, details: str, kind: type[errors.TritonChatError]) -> None:
    assert type(errors.from_status(code, details, "host:8001")) is kind


@pytest.mark.parametrize(
    ("details", "part"),
    [
        ("failed to connect to all addresses; Connection refused", "is it running? start it with `make serve`"),
        ("failed to connect to all addresses; UNAVAILABLE: Socket closed", "8000 is HTTP"),
        ("errors resolving host:8001: Domain name not found", "is the name right?"),
        ("Ssl handshake failed", "grpcs://"),
        ("Stream removed (Socket closed)", "broke"),
    ],
)
def test_an_unreachable_server_gets_a_likely_reason(details: str, part: str) -> None:
    assert part in str(errors.from_status("UNAVAILABLE", details, "host:8001"))


def test_no_stack_and_no_request_id_in_a_message() -> None:
    text = "[request id: 5] Failed to process, message: ValueError: x\n\nAt:\n  /models/chat/1/model.py(4): execute\n"
    assert str(errors.from_text(text)) == "Failed to process, message: ValueError: x"
    assert str(errors.from_text("")) == "the server gave no reason"
