from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from chat_gateway.errors import ApiError, ErrorBody, from_client, renamed
from chat_gateway.http.body import JsonRoute
from tests.gateway.apps import app_for
from tests.gateway.fakes import FakeClient
from triton_chat import errors

SECRET = "my secret prompt"

names = st.from_regex(r"[a-z_][a-z_0-9]{0,8}", fullmatch=True)
places = st.lists(st.integers(0, 999).map("[{}]".format) | names.map(".{}".format), max_size=4).map("".join)


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: str
    content: str | list[Part]


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    messages: Annotated[list[Message], Field(min_length=1)] = []
    temperature: Annotated[float | None, Field(le=2)] = None
    name: str | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value == "nobody":
            raise ValueError("must be somebody")
        return value


router = APIRouter(route_class=JsonRoute)


@router.post("/order")
async def order(body: Order) -> Order:
    return body


@router.get("/fail/{kind}")
async def fail(kind: str) -> None:
    raise {
        "unforeseen": RuntimeError(SECRET),
        "api": ApiError(418, "a teapot", param="pot", code="teapot"),
        "sdk": errors.OverloadedError("exceeds maximum queue size"),
        "internal": errors.ServerUnavailableError("cannot reach tritonserver at 10.1.2.3:8001"),
    }[kind]


@router.get("/half")
async def half() -> StreamingResponse:
    def body() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError(SECRET)

    return StreamingResponse(body())


@pytest.fixture
def app() -> FastAPI:
    app = app_for(FakeClient())
    app.include_router(router)
    return app


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


def error_of(response: Any) -> dict[str, Any]:
    ErrorBody.model_validate(response.json(), strict=True)
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (errors.InvalidRequestError("must be at most 2", field="temperature"), 400, "invalid_value", "temperature"),
        (errors.InvalidRequestError("no", field="messages[0].role"), 400, "invalid_value", "messages[0].role"),
        (errors.InvalidRequestError("no", field="prompt[12]"), 400, "invalid_value", "prompt[12]"),
        (errors.InvalidRequestError("no", field="prompt[12]", row=3), 400, "invalid_value", "prompt[12]"),
        (errors.InvalidRequestError("the batch is empty"), 400, "invalid_value", None),
        (errors.InvalidRequestError("temperature: words are no field"), 400, "invalid_value", None),
        (
            errors.ContextLengthError("too long", field="messages"),
            400,
            "context_length_exceeded",
            "messages",
        ),
        (errors.ModelNotFoundError("no"), 404, "model_not_found", "model"),
        (errors.OverloadedError("full"), 429, "overloaded", None),
        (errors.StreamTimeoutError("slow"), 503, "timeout", None),
        (errors.ServerUnavailableError("gone"), 503, "unavailable", None),
        (errors.EngineError("dead"), 503, "engine_failed", None),
        (errors.NotComputedError("no"), 503, "not_computed", None),
        (errors.RequestCancelledError("left"), 499, "cancelled", None),
    ],
)
def test_errors_of_the_sdk(error: errors.TritonChatError, status: int, code: str | None, param: str | None) -> None:
    found = from_client(error, retry_after=3)
    assert (found.status, found.code, found.param) == (status, code, param)
    assert (found.headers.get("Retry-After") == "3") == (status in {429, 503})


@given(names, names, places, st.integers(0, 9) | st.none(), st.text())
def test_a_field_gets_its_callers_name_and_keeps_its_kind(
    name: str, other: str, place: str, row: int | None, sentence: str
) -> None:
    told = errors.ContextLengthError(sentence, field=f"{name}{place}", row=row)
    here = renamed(told, {name: "prompt[1]"})
    assert (type(here), here.sentence) == (errors.ContextLengthError, sentence)
    assert (here.field, here.row) == (f"prompt[1]{place}", row)
    kept = renamed(told, {f"{name}{other}": "prompt[1]"})
    assert (kept.field, kept.row, str(kept)) == (told.field, row, str(told))


@pytest.mark.parametrize(
    ("field", "called"),
    [
        ("tools[0].function.name", "functions[0].name"),
        ("tools[0].function", "functions[0]"),
        ("tools[0].type", "functions[0].type"),
        ("tools[1].function.name", "functions[1].function.name"),
        ("tools", "functions"),
        ("tools_of_others", "tools_of_others"),
    ],
)
def test_the_longest_name_that_fits_is_meant(field: str, called: str) -> None:
    names = {"tools": "functions", "tools[0]": "functions[0]", "tools[0].function": "functions[0]"}
    assert renamed(errors.InvalidRequestError("no", field=field), names).field == called


def test_what_has_no_field_gets_none() -> None:
    assert renamed(errors.InvalidRequestError("x: no"), {"x": "y"}).field is None


def test_no_address_of_the_inside_is_told(client: TestClient) -> None:
    response = client.get("/fail/internal")
    assert response.status_code == 503
    assert "10.1.2.3" not in response.text


def test_errors_raised_in_routes(client: TestClient) -> None:
    response = client.get("/fail/api")
    assert response.status_code == 418
    assert error_of(response) == {
        "message": "a teapot",
        "type": "invalid_request_error",
        "param": "pot",
        "code": "teapot",
    }
    response = client.get("/fail/sdk")
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    assert error_of(response)["type"] == "rate_limit_error"


def test_an_unforeseen_error_tells_nothing(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    response = client.get("/fail/unforeseen", headers={"X-Request-Id": "r-1"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "r-1"
    assert error_of(response)["type"] == "server_error"
    assert SECRET not in response.text
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert vars(record)["request_id"] == "r-1"


def test_an_error_after_the_beginning_ends_the_response(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with client.stream("GET", "/half") as response:
        assert response.read() == b"half"
    assert [vars(record)["status"] for record in caplog.records if record.message == "request"] == [500]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nope", 404, "unknown_url"),
        ("GET", "/health/live/", 404, "unknown_url"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_and_methods(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (status, code)
    assert f"{method} {path}" in error["message"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/ping", "GET, HEAD, POST"),
        ("/health", "GET, HEAD"),
        ("/v1/models/chat", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/tokenizer_info", "GET, HEAD"),
        ("/v1/chat/completions", "POST"),
        ("/order", "POST"),
    ],
)
def test_a_route_tells_all_its_methods(client: TestClient, path: str, allowed: str) -> None:
    assert client.request("TRACE", path).headers["allow"] == allowed


@pytest.mark.parametrize(
    ("body", "param", "sentence", "code"),
    [
        ({"temperature": 3}, "temperature", "must be less than or equal to 2, not 3", "invalid_value"),
        ({"temperature": "hot"}, "temperature", 'must be a valid number, not "hot"', "invalid_type"),
        ({"temprature": 1}, "temprature", "is not a field of this request", "unknown_parameter"),
        ({"messages": []}, "messages", "must have at least 1 item, not 0", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": "hi"}, {"content": "hi"}]},
            "messages[1].role",
            "is required",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": "a"}, {}]}]},
            "messages[0].content",
            "must be a valid string",
            "invalid_type",
        ),
        ({"messages": {"role": "user"}}, "messages", "must be a valid list", "invalid_type"),
        ({"name": "nobody"}, "name", "must be somebody", "invalid_value"),
        ({"name": None, "x" * 500: 1}, "x" * 100, "is not a field of this request", "unknown_parameter"),
        ([], None, "must be a JSON object", "invalid_type"),
        ("text", None, "must be a JSON object", "invalid_type"),
        (None, None, "must be a JSON object", "invalid_type"),
    ],
)
def test_the_field_that_is_wrong_is_named(
    client: TestClient, body: object, param: str | None, sentence: str, code: str
) -> None:
    response = client.post("/order", content=json.dumps(body), headers={"Content-Type": "application/json"})
    error = error_of(response)
    assert response.status_code == 400
    assert error["param"] == param
    assert error["message"] == (f"{param}: {sentence}" if param else f"the body {sentence}")
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
