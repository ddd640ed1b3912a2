from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from tests.gateway.apps import app_for
from tests.gateway.callers import Caller, events_of, openai_over
from tests.gateway.fakes import FakeClient, fails, hangs, says
from triton_chat import errors
from triton_chat.types import Call, ChatEvent, PromptAlternative, PromptLogprob, TokenLogprob, TopLogprob

PATH = "/v1/completions"


@pytest.fixture
def api(gateway: TestClient) -> OpenAI:
    return openai_over(gateway)


async def repeats(call: Call) -> AsyncIterator[ChatEvent]:
    """Its prompt, then a word."""
    prompt = call.request.prompt or str(call.request.prompt_token_ids)
    yield ChatEvent("" if call.request.exclude_input_in_output else prompt, "", 7, 1, 3)
    yield ChatEvent(f" after {prompt}", "length", 7, 2, 3)


async def with_logprobs(_: Call) -> AsyncIterator[ChatEvent]:
    """A character in three tokens, then one token; the text comes when the character is whole."""
    *parts, last = [bytes([byte]) for byte in "月".encode()]
    entries = [TokenLogprob("\ufffd", -1.0, tuple(part), (TopLogprob("a", -0.5, (97,)),)) for part in (*parts, last)]
    yield ChatEvent("", "", 7, 2, 3, tuple(entries[:2]))
    yield ChatEvent("月", "", 7, 3, 3, (entries[2],))
    yield ChatEvent("!", "stop", 7, 4, 3, (TokenLogprob("!", -0.25, (33,), (TopLogprob("!", -0.25, (33,)),)),))


def test_the_answer(api: OpenAI, fake: FakeClient) -> None:
    fake.script = says("月", "亮", finish_reason="length")
    answer = api.completions.create(model="chat", prompt="什么", extra_headers={"X-Request-Id": "mine"})
    assert (answer.id, answer.object, answer.model) == ("cmpl-mine", "text_completion", "chat")
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "月亮", "length", None)
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 2, 9)
    assert fake.calls[0].request.sampling.max_tokens == 16
    assert fake.calls[0].request.messages is None


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("a", [("a", None)]),
        (["a", "b"], [("a", None), ("b", None)]),
        ([1, 2], [(None, [1, 2])]),
        ([[1], [2, 3]], [(None, [1]), (None, [2, 3])]),
    ],
)
def test_the_forms_of_a_prompt(api: OpenAI, fake: FakeClient, prompt: Any, sent: list[Any]) -> None:
    fake.script = repeats
    answer = api.completions.create(model="chat", prompt=prompt)
    assert [(call.request.prompt, call.request.prompt_token_ids) for call in fake.calls] == sent
    assert [choice.text for choice in answer.choices] == [f" after {text or ids}" for text, ids in sent]


def test_several_prompts_with_several_answers_each(api: OpenAI, fake: FakeClient) -> None:
    fake.script = repeats
    answer = api.completions.create(model="chat", prompt=["a", "b"], n=2, seed=5)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, " after a"),
        (1, " after a"),
        (2, " after b"),
        (3, " after b"),
    ]
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 8)
    seeds = {(call.request.prompt, call.request.sampling.seed) for call in fake.calls}
    assert seeds == {("a", 5), ("a", 6), ("b", 5), ("b", 6)}


@pytest.mark.parametrize("stream", [False, True])
def test_echo(gateway: TestClient, fake: FakeClient, stream: bool) -> None:
    fake.script = repeats
    body = {"model": "chat", "prompt": "什么", "echo": True, "stream": stream}
    response = gateway.post(PATH, json=body)
    answers = events_of(response.text)[:-1] if stream else [response.json()]
    assert "".join(answer["choices"][0]["text"] for answer in answers) == "什么 after 什么"


def test_stream(api: OpenAI, fake: FakeClient) -> None:
    fake.script = says("月", "亮")
    stream = api.completions.create(model="chat", prompt="什么", stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert [(chunk.choices[0].text, chunk.choices[0].finish_reason) for chunk in chunks] == [
        ("月", None),
        ("亮", "stop"),
    ]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage
    assert last.usage.total_tokens == 9


def test_logprobs(api: OpenAI, fake: FakeClient) -> None:
    fake.script = with_logprobs
    (choice,) = api.completions.create(model="chat", prompt="什么", logprobs=1).choices
    assert fake.calls[0].request.sampling.logprobs == 1
    assert choice.text == "月!"
    assert choice.logprobs
    assert choice.logprobs.tokens == [r"bytes:\xe6", r"bytes:\x9c", r"bytes:\x88", "!"]
    assert choice.logprobs.token_logprobs == [-1.0, -1.0, -1.0, -0.25]
    assert choice.logprobs.text_offset == [0, 0, 0, 1]
    assert choice.logprobs.top_logprobs
    assert choice.logprobs.top_logprobs[0] == {"a": -0.5, r"bytes:\xe6": -1.0}
    assert choice.logprobs.top_logprobs[3] == {"!": -0.25}


def test_logprobs_in_a_stream_add_up(api: OpenAI, fake: FakeClient) -> None:
    fake.script = with_logprobs
    whole = api.completions.create(model="chat", prompt="什么", logprobs=1).choices[0].logprobs
    stream = api.completions.create(model="chat", prompt="什么", logprobs=1, stream=True)
    parts = [logprobs for chunk in stream if (logprobs := chunk.choices[0].logprobs)]
    assert whole
    for name, values in whole.model_dump().items():
        assert [value for part in parts for value in getattr(part, name)] == values


async def with_prompt(call: Call) -> AsyncIterator[ChatEvent]:
    """A prompt of three tokens in two events, then an answer of two."""
    top = (PromptAlternative("z", -0.5, (122,), 9), PromptAlternative("y", -1.5, (121,), 8))
    ids = (5, 6, 7) if call.request.sampling.return_token_ids else ()
    echo = "" if call.request.exclude_input_in_output else "abc"
    first, *others = [PromptLogprob("a", None, (97,), 5), *(PromptLogprob(x, -2.0, None, 6, 3, top) for x in "bc")]
    yield ChatEvent(echo, "", 3, 0, 0, (), (first, others[0]), (), ids)
    yield ChatEvent("", "", 3, 0, 0, (), (others[1],))
    yield ChatEvent("!", "", 3, 1, 0, (TokenLogprob("!", -0.25, (33,), (TopLogprob("!", -0.25, (33,)),)),), (), ids[:1])
    yield ChatEvent(
        "?", "stop", 3, 2, 0, (TokenLogprob("?", -0.5, (63,), (TopLogprob("!", -0.25, (33,)),)),), (), ids[1:2]
    )


ECHOED = {
    "tokens": ["a", "b", "c", "!", "?"],
    "token_logprobs": [None, -2.0, -2.0, -0.25, -0.5],
    "top_logprobs": [None, {"z": -0.5, "b": -2.0}, {"z": -0.5, "c": -2.0}, {"!": -0.25}, {"!": -0.25, "?": -0.5}],
    "text_offset": [0, 1, 2, 3, 4],
}


@pytest.mark.parametrize("n", [1, 2])
def test_logprobs_of_an_echo(api: OpenAI, fake: FakeClient, n: int) -> None:
    fake.script = with_prompt
    answer = api.completions.create(model="chat", prompt="abc", echo=True, logprobs=1, n=n, max_tokens=2)
    assert fake.calls[0].request.sampling.prompt_logprobs == 1
    assert [choice.text for choice in answer.choices] == ["abc!?"] * n
    assert [choice.logprobs.to_dict() for choice in answer.choices if choice.logprobs] == [ECHOED] * n


def test_logprobs_of_an_echo_in_a_stream(api: OpenAI, fake: FakeClient) -> None:
    fake.script = with_prompt
    stream = api.completions.create(model="chat", prompt="abc", echo=True, logprobs=1, stream=True)
    parts = [logprobs for chunk in stream if (logprobs := chunk.choices[0].logprobs)]
    assert {name: [value for part in parts for value in getattr(part, name)] for name in ECHOED} == ECHOED


def test_prompt_logprobs_and_token_ids(gateway: TestClient, fake: FakeClient) -> None:
    fake.script = with_prompt
    body = {"model": "chat", "prompt": ["abc", "abc"], "prompt_logprobs": 1, "return_token_ids": True}
    choices = gateway.post(PATH, json=body).json()["choices"]
    assert len(choices) == 2
    for choice in choices:
        assert (choice["text"], choice["logprobs"]) == ("!?", None)
        assert (choice["prompt_token_ids"], choice["token_ids"]) == ([5, 6, 7], [5, 6])
        z = {"logprob": -0.5, "rank": 1, "decoded_token": "z"}
        own = [{"logprob": -2.0, "rank": 3, "decoded_token": name} for name in "bc"]
        assert choice["prompt_logprobs"] == [None, {"6": own[0], "9": z}, {"6": own[1], "9": z}]


def test_what_was_not_asked_for_is_not_there(gateway: TestClient, fake: FakeClient) -> None:
    (choice,) = gateway.post(PATH, json={"model": "chat", "prompt": "a", "return_token_ids": False}).json()["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}


def test_the_prompt_alone(api: OpenAI, fake: FakeClient) -> None:
    async def prompt_alone(_: Call) -> AsyncIterator[ChatEvent]:
        first, second = PromptLogprob("a", None, (97,), 5), PromptLogprob("b", -2.0, (98,), 6, 3)
        yield ChatEvent("ab", "length", 2, 0, 0, (), (first, second))

    fake.script = prompt_alone
    answer = api.completions.create(model="chat", prompt="ab", echo=True, logprobs=0, max_tokens=0)
    assert fake.calls[0].request.sampling.max_tokens == 0
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("ab", "length")
    assert choice.logprobs
    assert choice.logprobs.to_dict() == {
        "tokens": ["a", "b"], "token_logprobs": [None, -2.0], "top_logprobs": None, "text_offset": [0, 1],
    }  # fmt: skip


def test_a_bad_prompt_is_named_as_the_caller_named_it(api: OpenAI, fake: FakeClient) -> None:
    fake.script = fails(errors.InvalidRequestError("the prompt has no tokens; send at least one", field="text_input"))
    with pytest.raises(openai.BadRequestError, match="prompt: the prompt has no tokens") as caught:
        api.completions.create(model="chat", prompt="")
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2}, "prompt"),
        ({"prompt": [[1], ["a"]]}, "prompt[1][0]"),
        ({"n": 17}, "n"),
        ({"logprobs": 1000}, "logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"messages": []}, "messages"),
    ],
)
def test_nothing_bad_reaches_the_engine(
    gateway: TestClient, fake: FakeClient, fields: dict[str, Any], param: str
) -> None:
    response = gateway.post(PATH, json={"model": "chat", "prompt": "a"} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert fake.calls == []


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_cancels_all_prompts(fake: FakeClient, stream: bool) -> None:
    fake.script = hangs("月")
    body = {"model": "chat", "prompt": ["a", "b", "c"], "stream": stream}
    async with Caller(app_for(fake), PATH, body) as caller:
        await caller.reaches(lambda: len(fake.streams) == 3)
    assert all(stream.cancelled.is_set() for stream in fake.streams)


def test_usage_in_each_chunk(api: OpenAI, fake: FakeClient) -> None:
    """guidellm asks for it, always."""
    fake.script = says("a", "b", "c")
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = api.completions.create(model="chat", prompt=["x", "y"], stream=True, stream_options=options)
    *chunks, last = list(stream)
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert (counts, counts[-1]) == (sorted(counts), 6)
    assert (last.choices, last.usage and last.usage.completion_tokens) == ([], 6)


def test_what_lm_eval_sends(gateway: TestClient, fake: FakeClient) -> None:
    body = {"model": "chat", "prompt": [[1, 2], [3]], "max_tokens": 8, "temperature": 0, "stop": ["\n"], "seed": 1234}
    assert gateway.post(PATH, json=body).status_code == 200
    assert [call.request.sampling.seed for call in fake.calls] == [1234, 1234]
