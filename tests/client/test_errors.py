"""What the SDK makes of an error that arrives. tests/test_error_wire.py holds it against what our models write."""

from __future__ import annotations

import pytest

from triton_chat import errors

ROW = "row 3: messages[0].content: holds a NUL character [code=invalid_value field=messages[0].content row=3]"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[request id: <id_unknown>] Exceeds maximum queue size", errors.OverloadedError),
        ("Request timeout expired", errors.OverloadedError),
        ("Request for unknown model: 'nope' is not found", errors.ModelNotFoundError),
        ("Request for unknown model: 'x' has no available versions", errors.ServerStoppingError),
        ("[request id: 1] unexpected shape for input 'text_input' for model 'chat'", errors.InvalidRequestError),
        ("unexpected inference input 'zzz' for model 'chat'", errors.InvalidRequestError),
        ("Stub process 'chat_0_0' is not healthy.", errors.EngineError),
        ("something nobody has thought of", errors.EngineError),
    ],
)
def test_tritons_own_text(text: str, kind: type[errors.TritonChatError]) -> None:
    error = errors.from_text(text)
    assert (type(error), error.field, error.row) == (kind, None, None)


@pytest.mark.parametrize(
    ("text", "kind", "field", "row"),
    [
        (
            "64 requests are running, as many as allowed; try again later [code=overloaded]",
            errors.OverloadedError,
            None,
            None,
        ),
        (
            "the prompt has 9 tokens; the maximum context length is 8 tokens [code=context_length_exceeded]",
            errors.ContextLengthError,
            None,
            None,
        ),
        (
            "max_tokens: 9 and a prompt of 8 tokens [code=context_length_exceeded field=max_tokens]",
            errors.ContextLengthError,
            "max_tokens",
            None,
        ),
        (
            "temperature: must be at least 0 (got -1) [code=invalid_value field=temperature]",
            errors.InvalidRequestError,
            "temperature",
            None,
        ),
        (ROW, errors.InvalidRequestError, "messages[0].content", 3),
        ("exactly one is required, both given [code=invalid_value]", errors.InvalidRequestError, None, None),
        (
            "Foo bar: unknown parameter (value 1) [code=invalid_value field=Foo%20bar]",
            errors.InvalidRequestError,
            "Foo bar",
            None,
        ),
        (
            "stop: too long (got 'Exceeds maximum queue size') [code=invalid_value field=stop]",
            errors.InvalidRequestError,
            "stop",
            None,
        ),
        ("no model 'x' [code=model_not_found]", errors.ModelNotFoundError, None, None),
        ("the server is shutting down; try again elsewhere [code=stopping]", errors.ServerStoppingError, None, None),
        ("the request was cancelled while it waited [code=cancelled]", errors.RequestCancelledError, None, None),
        ("row 1: the model could not compute it [code=not_computed row=1]", errors.NotComputedError, None, 1),
        ("the engine failed while this request was running [code=engine_failed]", errors.EngineError, None, None),
        ("internal error [code=internal_error]", errors.EngineError, None, None),
        ("x: of a newer server [code=not_known_here field=x more=1]", errors.EngineError, "x", None),
        (" [code=overloaded]", errors.OverloadedError, None, None),
    ],
)
def test_the_data_tells(text: str, kind: type[errors.TritonChatError], field: str | None, row: int | None) -> None:
    error = errors.from_text(text)
    assert (type(error), error.field, error.row) == (kind, field, row)
    assert str(error) == text.rpartition(" [code=")[0]


@pytest.mark.parametrize(
    "text",
    [
        "temperature: must be at least 0 (got -1)",
        "row 3: messages[0].content: holds a NUL character",
        "row 3: messages.0.content: holds a NUL character",
        "Foo: unknown parameter (value 1); allowed are top_p",
        "the prompt has 9 tokens; the maximum context length is 8 tokens",
        "64 requests are running, as many as allowed; try again later",
        "the server is shutting down; try again elsewhere",
    ],
)
def test_our_words_without_the_data_tell_nothing(text: str) -> None:
    for error in (errors.from_text(text), errors.from_status("INTERNAL", text, "host:8001")):
        assert (type(error), error.field, error.row, str(error)) == (errors.EngineError, None, None, text)


@pytest.mark.parametrize(
    "sentence",
    ["a [code=overloaded] b", "a [code=overloaded]", "row 7: top_p: x [code=stopping field=y row=8] "],
)
def test_what_a_caller_writes_is_no_data(sentence: str) -> None:
    error = errors.from_text(f"stop: {sentence} [code=invalid_value field=stop]")
    assert (type(error), error.field, error.row) == (errors.InvalidRequestError, "stop", None)
    assert error.sentence == sentence


@pytest.mark.parametrize("text", ["a [code=overloaded] b", "a [code=overloaded", "a[code=overloaded]"])
def test_what_does_not_end_with_data_has_none(text: str) -> None:
    assert type(errors.from_text(text)) is errors.EngineError


@pytest.mark.parametrize("data", ["row=x", "row=", "row", "=", "", "row=-1"])
def test_data_that_is_none_is_no_failure_of_the_client(data: str) -> None:
    error = errors.from_text(f"no [code=invalid_value {data}]")
    assert (type(error), error.field, error.row) == (errors.InvalidRequestError, None, None)


@pytest.mark.parametrize("before", ["", "[request id: 5] ", "[request id: <id_unknown>] "])
@pytest.mark.parametrize("after", ["", "\n", "\n\nAt:\n  /models/chat/1/model.py(4): execute\n"])
def test_what_triton_adds_does_not_disturb_the_data(before: str, after: str) -> None:
    error = errors.from_text(f"{before}{ROW}{after}")
    assert (type(error), error.field, error.row) == (errors.InvalidRequestError, "messages[0].content", 3)
    assert error.sentence == "holds a NUL character"


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("INVALID_ARGUMENT", "anything", errors.InvalidRequestError),
        ("INVALID_ARGUMENT", "the prompt has 9 tokens [code=context_length_exceeded]", errors.ContextLengthError),
        ("NOT_FOUND", "anything", errors.ModelNotFoundError),
        ("NOT_FOUND", "Request for unknown model: 'x' has no available versions", errors.ServerStoppingError),
        ("UNAVAILABLE", "Server not ready", errors.ServerStoppingError),
        ("UNAVAILABLE", "Request timeout expired", errors.OverloadedError),
        (
            "UNAVAILABLE",
            "GRPC server is shutting down and has stopped accepting new requests",
            errors.ServerStoppingError,
        ),
        ("UNAVAILABLE", "failed to connect to all addresses", errors.ServerUnreachedError),
        ("UNAVAILABLE", "connection attempt timed out before receiving SETTINGS frame", errors.ServerSilentError),
        ("RESOURCE_EXHAUSTED", "anything", errors.OverloadedError),
        ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max", errors.InvalidRequestError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", errors.StreamTimeoutError),
        ("CANCELLED", "", errors.ServerUnavailableError),
        ("CANCELLED", "Locally cancelled by application!", errors.RequestCancelledError),
        ("CANCELLED", "Channel closed!", errors.RequestCancelledError),
        ("CANCELLED", "row 0: it was cancelled while it waited [code=cancelled row=0]", errors.RequestCancelledError),
        ("INTERNAL", "anything", errors.EngineError),
        ("INTERNAL", "ValueError: no field", errors.EngineError),
        ("INTERNAL", "row 0: top_p: no (got 7) [code=invalid_value field=top_p row=0]", errors.InvalidRequestError),
        ("UNAVAILABLE", "of every transport, tls has no room [code=overloaded]", errors.OverloadedError),
        ("UNAVAILABLE", "socket closed, says the operator [code=stopping]", errors.ServerStoppingError),
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
