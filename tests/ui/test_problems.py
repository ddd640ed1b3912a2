from __future__ import annotations

import logging

import httpx2
import openai
import pytest

from chat_page import problems
from chat_page.gateway import NoModelError, NotAGatewayError
from chat_page.settings import KEY_VARIABLE

REQUEST = httpx2.Request("POST", "http://10.0.0.7:9000/v1/chat/completions")


def refusal(status: int, code: str | None = None, message: str = "no", retry_after: str = "") -> openai.APIStatusError:
    headers = {"retry-after": retry_after} if retry_after else {}
    response = httpx2.Response(status, headers=headers, request=REQUEST)
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return openai.APIStatusError(f"Error code: {status} - {body}", response=response, body=body)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (openai.APIConnectionError(request=REQUEST), "cannot be reached"),
        (openai.APITimeoutError(REQUEST), "took too long"),
        (refusal(401), KEY_VARIABLE),
        (refusal(403), KEY_VARIABLE),
        (refusal(404, "model_not_found"), "no longer served"),
        (refusal(400, "context_length_exceeded", "the prompt has 3000 tokens, the context holds 2048"), "holds 2048."),
        (refusal(400, None, "temperature: must be at most 2"), "Temperature\\: must be at most 2."),
        (refusal(413), "too large"),
        (refusal(429, "overloaded"), "Try again in a moment."),
        (refusal(429, "overloaded", retry_after="1"), "Try again in 1 second."),
        (refusal(503, "unavailable", retry_after="5"), "not available right now. Try again in 5 seconds."),
        (refusal(404, None, ""), "does not speak the OpenAI API"),
        (openai.APIError("x", REQUEST, body=None), "was interrupted."),
        (NoModelError(), "no chat model"),
        (NotAGatewayError(), "does not speak the OpenAI API"),
    ],
)
def test_each_problem_has_its_sentence(error: Exception, words: str) -> None:
    sentence = problems.sentence(error)
    assert words in sentence
    assert "10.0.0.7" not in sentence
    assert sentence.endswith((".", "?"))


def test_what_the_gateway_says_is_neither_markup_nor_endless() -> None:
    sentence = problems.sentence(refusal(400, None, "![x](http://example.com) <b>" + "a" * 1000))
    assert r"\!\[x\]" in sentence
    assert r"\<b\>" in sentence
    assert len(sentence) < 600


def test_the_log_says_what_happened(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert "cannot be reached" in problems.report(openai.APIConnectionError(request=REQUEST))
        assert "see its log" in problems.report(RuntimeError("a bug"))
    assert "APIConnectionError" in caplog.text
    assert "a bug" in caplog.text
