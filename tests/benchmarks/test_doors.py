"""What a caller sees of an answer, on a server that is none."""

from __future__ import annotations

import json
import math
import time

import httpx2
import pytest

from benchmarks.answers import Answer, Reader, RefusedError, WrongAnswerError
from benchmarks.doors import HttpDoor
from benchmarks.jobs import Job

JOB = Job([5, 6, 7], 2)


def events(*tokens: str, usage: tuple[int, int] = (3, 2)) -> str:
    choices = [{"choices": [{"text": token}]} for token in tokens]
    counted = {"choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    return "".join(f"data: {json.dumps(event)}\n\n" for event in (*choices, counted)) + "data: [DONE]\n\n"


async def ask(monkeypatch: pytest.MonkeyPatch, text: str, status: int = 200) -> Answer:
    transport = httpx2.MockTransport(lambda _request: httpx2.Response(status, text=text))
    whole = httpx2.AsyncClient
    monkeypatch.setattr(httpx2, "AsyncClient", lambda **options: whole(**options, transport=transport))
    answer = Answer(JOB.max_tokens, asked_at=time.monotonic())
    async with HttpDoor("http://server").open() as way:
        await way(JOB, answer)
    return answer


async def test_an_answer_as_long_as_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await ask(monkeypatch, events("", "w5", "w6"))
    assert answer.complete
    assert len(answer.times) == 2
    assert answer.first_token_s > 0


@pytest.mark.parametrize(
    ("text", "status", "error", "says"),
    [
        (events("w5", usage=(3, 1)), 200, WrongAnswerError, r"\(3, 1\) tokens instead of \(3, 2\)"),
        (events(), 200, WrongAnswerError, r"no text"),
        ("data: [DONE]\n\n", 200, WrongAnswerError, r"\(None, None\) tokens"),
        ("no such field", 400, WrongAnswerError, "400: no such field"),
        ("busy", 429, RefusedError, "429: busy"),
    ],
)
async def test_another_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch, text: str, status: int, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await ask(monkeypatch, text, status)


def test_an_event_comes_with_its_last_byte() -> None:
    answer = Answer(2, asked_at=1.0)
    reader = Reader(answer)
    whole = events("", "w5", "w6").encode()
    cut = whole.index(b"w6")
    reader.feed(2.0, whole[:cut])
    reader.feed(3.0, whole[cut:])
    reader.end(3)
    assert answer.times == [2.0, 3.0]
    assert (answer.first_token_s, answer.per_token_s) == (1.0, 1.0)


def test_what_does_not_come_takes_for_ever() -> None:
    assert Answer(2).first_token_s == math.inf
    assert Answer(2, 0.0, [1.0, 2.0]).per_token_s == math.inf
    assert Answer(1, 0.0, [1.0], complete=True).per_token_s == 0.0


def test_the_gaps_of_a_span_of_time() -> None:
    answer = Answer(5, times=[1.0, 2.0, 4.0, 5.0, 9.0])
    assert answer.gaps(2.5, 4.5) == [2.0, 1.0]


def test_a_server_of_texts_gets_the_same_tokens() -> None:
    body = HttpDoor("http://server", "m", as_text=True, more={"x": 1}).body(JOB)
    assert (body["prompt"], body["model"], body["x"], "ignore_eos" in body) == ("w5 w6 w7", "m", 1, False)
    assert HttpDoor("http://server").body(JOB)["prompt"] == [5, 6, 7]
