from __future__ import annotations

import asyncio
import http.client
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any, ClassVar
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from chat_gateway.upstream import details
from tests.gateway.apps import app_for, served, wait_until
from tests.gateway.callers import Caller, events_of, openai_over
from tests.gateway.fakes import WAIT_S, FakeClient, calls, event, fails, hangs, plays, says
from triton_chat import errors
from triton_chat.types import Call, ChatEvent, PromptLogprob, TokenizerInfo, TokenLogprob, ToolCallDelta, TopLogprob

PATH = "/v1/chat/completions"
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
MESSAGES: Any = [{"role": "system", "content": "Sei kurz."}, {"role": "user", "content": "什么是月亮？"}]
BODY = {"model": "chat", "messages": MESSAGES}


@pytest.fixture
def api(gateway: TestClient) -> OpenAI:
    return openai_over(gateway)


async def with_logprobs(_: Call) -> AsyncIterator[ChatEvent]:
    top = (TopLogprob("月", -0.5, tuple("月".encode())), TopLogprob("日", -1.5, tuple("日".encode())))
    for count, part in enumerate("月亮", start=1):
        entry = TokenLogprob(part, -0.5, tuple(part.encode()), top)
        yield ChatEvent(part, "stop" if count == 2 else "", 7, count, 3, (entry,))


class TestInOnePiece:
    def test_the_answer(self, api: OpenAI, fake: FakeClient) -> None:
        fake.script = says("Der ", "Mond ", "🌙", finish_reason="length")
        answer = api.chat.completions.create(model="chat", messages=MESSAGES, extra_headers={"X-Request-Id": "mine"})
        assert (answer.id, answer.object, answer.model) == ("chatcmpl-mine", "chat.completion", "chat")
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content, choice.finish_reason) == (
            "assistant",
            "Der Mond 🌙",
            "length",
        )
        assert choice.logprobs is None
        usage = answer.usage
        assert usage
        assert usage.prompt_tokens_details
        counts = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
        assert (counts, usage.prompt_tokens_details.cached_tokens) == ((7, 3, 10), 3)

    def test_what_the_engine_is_asked(self, api: OpenAI, fake: FakeClient) -> None:
        api.chat.completions.create(
            model="chat",
            messages=MESSAGES,
            temperature=0.5,
            max_completion_tokens=9,
            seed=3,
            extra_body={"top_k": 4, "add_generation_prompt": False, "skip_special_tokens": False},
            extra_headers={"X-Request-Id": "mine"},
        )
        (call,) = fake.calls
        assert (call.model, call.request_id, call.request.messages) == ("chat", "mine-0", MESSAGES)
        assert call.request.sampling.to_dict() == {
            "temperature": 0.5,
            "max_tokens": 9,
            "seed": 3,
            "top_k": 4,
            "skip_special_tokens": False,
        }
        assert call.request.add_generation_prompt is False
        assert call.request.continue_final_message is None

    def test_names_and_a_last_message_that_goes_on(self, api: OpenAI, fake: FakeClient) -> None:
        """AutoGen, Semantic Kernel and Haystack name each message."""
        messages: Any = [
            {"role": "system", "content": "Sei kurz.", "name": "rules"},
            {"role": "user", "content": "Hi", "name": "Ann"},
            {"role": "assistant", "content": "Hello,", "name": None},
        ]
        api.chat.completions.create(model="chat", messages=messages, extra_body={"continue_final_message": True})
        (call,) = fake.calls
        assert call.request.messages == [*messages[:2], {"role": "assistant", "content": "Hello,"}]
        assert (call.request.continue_final_message, call.request.add_generation_prompt) == (True, None)

    def test_several_answers(self, api: OpenAI, fake: FakeClient) -> None:
        numbers = itertools.count()
        fake.script = lambda call: says(f"answer {next(numbers)}")(call)
        answer = api.chat.completions.create(model="chat", messages=MESSAGES, n=3)
        assert [(choice.index, choice.message.content) for choice in answer.choices] == [
            (index, f"answer {index}") for index in range(3)
        ]
        assert answer.usage
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)

    def test_logprobs(self, api: OpenAI, fake: FakeClient) -> None:
        fake.script = with_logprobs
        answer = api.chat.completions.create(model="chat", messages=MESSAGES, logprobs=True, top_logprobs=2)
        assert fake.calls[0].request.sampling.logprobs == 2
        assert answer.choices[0].logprobs
        content = answer.choices[0].logprobs.content or []
        assert [(entry.token, entry.bytes, entry.logprob) for entry in content] == [
            (part, list(part.encode()), -0.5) for part in "月亮"
        ]
        assert [top.token for top in content[0].top_logprobs] == ["月", "日"]

    def test_prompt_logprobs_and_token_ids(self, gateway: TestClient, fake: FakeClient) -> None:
        """vLLM has what is about the prompt beside the choices."""

        async def script(_: Call) -> AsyncIterator[ChatEvent]:
            first, second = PromptLogprob("a", None, (97,), 5), PromptLogprob("b", -2.0, (98,), 6, 3)
            yield ChatEvent("", "", 2, 0, 0, (), (first, second), (), (5, 6))
            yield ChatEvent("!", "stop", 2, 2, 0, (), (), (7, 2))

        fake.script = script
        answer = gateway.post(PATH, json={**BODY, "prompt_logprobs": 0, "return_token_ids": True, "n": 2}).json()
        assert fake.calls[0].request.sampling.to_dict() == {"prompt_logprobs": 0, "return_token_ids": True}
        assert answer["prompt_token_ids"] == [5, 6]
        assert answer["prompt_logprobs"] == [None, {"6": {"logprob": -2.0, "rank": 3, "decoded_token": "b"}}]
        assert [choice["token_ids"] for choice in answer["choices"]] == [[7, 2], [7, 2]]

    def test_an_alias_is_answered_by_its_own_name(self, fake: FakeClient) -> None:
        with TestClient(app_for(fake, aliases={"gpt-4o": "chat"})) as gateway:
            answer = openai_over(gateway).chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert (answer.model, fake.calls[0].model) == ("gpt-4o", "chat")

    def test_only_what_openai_would_send(self, gateway: TestClient) -> None:
        answer = gateway.post(PATH, json=BODY).json()
        assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
        assert answer["choices"][0] | {"message": {}} == {
            "index": 0,
            "message": {},
            "logprobs": None,
            "finish_reason": "stop",
        }
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello there", "refusal": None}


class TestCalls:
    CALLS = (("weather", '{"city": "Köln"}'), ("time", "{}"))

    def test_the_message(self, gateway: TestClient, fake: FakeClient) -> None:
        fake.script = calls(*self.CALLS)
        (choice,) = gateway.post(PATH, json={**BODY, "tools": TOOLS}).json()["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"] == {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for index, (name, arguments) in enumerate(self.CALLS)
            ],
        }

    def test_with_a_text(self, gateway: TestClient, fake: FakeClient) -> None:
        fake.script = plays(event("Wait."), ChatEvent("", "length", tool_calls=(ToolCallDelta(0, "a", "f", "{"),)))
        (choice,) = gateway.post(PATH, json={**BODY, "tools": TOOLS}).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Wait.", "length")
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{"}

    def test_what_the_engine_is_asked(self, api: OpenAI, fake: FakeClient) -> None:
        choice: Any = {"type": "function", "function": {"name": "weather"}}
        api.chat.completions.create(
            model="chat",
            messages=MESSAGES,
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            response_format={"type": "json_object"},
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        )
        request = fake.calls[0].request
        assert (request.tools, request.tool_choice, request.parallel_tool_calls) == (TOOLS, choice, False)
        assert request.chat_template_kwargs == {"enable_thinking": False}
        assert request.sampling.to_dict() == {}, "the call that is forced wins over the format"

    @pytest.mark.parametrize("stream", [False, True])
    def test_of_several_answers(self, api: OpenAI, fake: FakeClient, stream: bool) -> None:
        numbers = itertools.count()
        fake.script = lambda call: calls((f"f{next(numbers)}", "{}"))(call)
        if stream:
            chunks = api.chat.completions.create(model="chat", messages=MESSAGES, tools=TOOLS, n=3, stream=True)
            deltas = [(c.index, d) for chunk in chunks for c in chunk.choices for d in c.delta.tool_calls or ()]
            found = [(index, d.function.name) for index, d in deltas if d.function and d.function.name]
        else:
            answer = api.chat.completions.create(model="chat", messages=MESSAGES, tools=TOOLS, n=3)
            found = [(c.index, call.function.name) for c in answer.choices for call in c.message.tool_calls or ()]
        assert sorted(found) == [(0, "f0"), (1, "f1"), (2, "f2")]

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(("engines", "told"), [("tool_calls", "function_call"), ("stop", "stop")])
    def test_in_the_older_form(
        self, gateway: TestClient, fake: FakeClient, stream: bool, engines: str, told: str
    ) -> None:
        fake.script = calls(*self.CALLS[:1], finish_reason=engines)
        response = gateway.post(PATH, json={**BODY, "functions": [TOOLS[0]["function"]], "stream": stream})
        choices = [c["choices"][0] for c in (events_of(response.text)[:-1] if stream else [response.json()])]
        parts = [choice["delta" if stream else "message"].get("function_call", {}) for choice in choices]
        call = {name: "".join(part.get(name, "") for part in parts) for name in ("name", "arguments")}
        assert call == dict(zip(("name", "arguments"), self.CALLS[0], strict=True))
        assert choices[-1]["finish_reason"] == told
        assert not any("tool_calls" in choice["delta" if stream else "message"] for choice in choices)

    @pytest.mark.parametrize(
        ("fields", "field", "param"),
        [
            ({"tools": TOOLS}, "tools[0].function.name", "tools[0].function.name"),
            ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice", "tool_choice"),
            ({"functions": [{"name": "f"}]}, "tools[0].function.parameters", "functions[0].parameters"),
            (
                {"functions": [{"name": "f"}], "function_call": {"name": "g"}},
                "tool_choice.function.name",
                "function_call.name",
            ),
            ({"response_format": {"type": "json_object"}}, "structured_outputs", "response_format"),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
                "structured_outputs.json",
                "response_format.json_schema.schema",
            ),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
                "structured_outputs",
                "response_format",
            ),
            ({"guided_json": {"type": "x"}}, "structured_outputs.json", "guided_json"),
            ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "structured_outputs.regex"),
            ({"reasoning_effort": "low"}, "chat_template_kwargs.reasoning_effort", "reasoning_effort"),
            (
                {"reasoning_effort": "low", "chat_template_kwargs": {"foo": 1}},
                "chat_template_kwargs.reasoning_effort",
                "reasoning_effort",
            ),
            (
                {"reasoning_effort": "low", "chat_template_kwargs": {"foo": 1}},
                "chat_template_kwargs.foo",
                "chat_template_kwargs.foo",
            ),
            (
                {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
                "chat_template_kwargs.reasoning_effort",
                "chat_template_kwargs.reasoning_effort",
            ),
            ({}, "messages[2].tool_calls[0].function.arguments", "messages[2].tool_calls[0].function.arguments"),
        ],
    )
    def test_what_the_engine_refuses_is_named_as_the_caller_wrote_it(
        self, gateway: TestClient, fake: FakeClient, fields: dict[str, Any], field: str, param: str
    ) -> None:
        fake.template_kwargs = ("reasoning_effort",)
        fake.script = fails(errors.InvalidRequestError("cannot be used", field=field))
        response = gateway.post(PATH, json=BODY | fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert error["message"] == f"{param}: cannot be used"


class TestReasoning:
    def test_the_message_and_the_usage(self, api: OpenAI, fake: FakeClient) -> None:
        fake.script = plays(
            ChatEvent("", "", 7, 3, reasoning="hm", num_reasoning_tokens=3),
            ChatEvent("x", "stop", 7, 4, num_reasoning_tokens=3),
        )
        answer = api.chat.completions.create(model="chat", messages=MESSAGES)
        message = answer.choices[0].message.model_dump(exclude_unset=True)
        assert message == {
            "role": "assistant",
            "content": "x",
            "refusal": None,
            "reasoning": "hm",
            "reasoning_content": "hm",
        }
        assert answer.usage
        assert answer.usage.completion_tokens_details
        assert (answer.usage.completion_tokens, answer.usage.completion_tokens_details.reasoning_tokens) == (4, 3)

    def test_cut_before_an_answer(self, gateway: TestClient, fake: FakeClient) -> None:
        fake.script = plays(ChatEvent("", "length", reasoning="hm"))
        message = gateway.post(PATH, json=BODY).json()["choices"][0]["message"]
        assert (message["content"], message["reasoning"]) == (None, "hm")

    @pytest.mark.parametrize("stream", [False, True])
    def test_not_where_it_is_not_wanted(self, gateway: TestClient, fake: FakeClient, stream: bool) -> None:
        fake.script = calls(("weather", "{}"), reasoning="hm")
        response = gateway.post(PATH, json={**BODY, "include_reasoning": False, "stream": stream})
        assert "weather" in response.text
        assert "hm" not in response.text

    @pytest.mark.parametrize(
        ("known", "effort", "kwargs"),
        [
            (("enable_thinking",), "none", {"enable_thinking": False}),
            (("reasoning_effort",), "low", {"reasoning_effort": "low"}),
            (("reasoning_effort",), "max", {"reasoning_effort": "xhigh"}),
            ((), "none", None),
            ((), None, None),
        ],
    )
    def test_effort(
        self, gateway: TestClient, fake: FakeClient, known: tuple[str, ...], effort: str | None, kwargs: object
    ) -> None:
        fake.template_kwargs = known
        fake.template = "{% if reasoning_effort == 'xhigh' %}"
        assert gateway.post(PATH, json={**BODY, "reasoning_effort": effort}).status_code == 200
        assert fake.calls[0].request.chat_template_kwargs == kwargs

    @pytest.mark.parametrize(
        ("known", "effort"), [((), "high"), (("strftime_now",), "high"), (("reasoning_effort",), "none")]
    )
    def test_no_effort_that_the_template_cannot_take(
        self, gateway: TestClient, fake: FakeClient, known: tuple[str, ...], effort: str
    ) -> None:
        fake.template_kwargs = known
        response = gateway.post(PATH, json={**BODY, "reasoning_effort": effort})
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, "reasoning_effort", "unsupported_value")
        assert fake.calls == []

    def test_nobody_tells_what_the_template_reads(self, gateway: TestClient, fake: FakeClient) -> None:
        gateway.post("/v1/completions", json={"model": "chat", "prompt": "so that the model is known"})
        fake.failure = errors.ServerUnavailableError("gone")
        response = gateway.post(PATH, json={**BODY, "reasoning_effort": "high"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")

    @pytest.mark.parametrize(
        "failure",
        [
            errors.ModelNotFoundError("unknown model"),
            errors.InvalidRequestError("no such model", field="model"),
            errors.EngineError("the tokenizer failed"),
        ],
    )
    def test_a_tokenizer_that_is_missing_or_fails(
        self, gateway: TestClient, fake: FakeClient, failure: errors.TritonChatError
    ) -> None:
        fake.template_kwargs, fake.tokenizer_failure = ("enable_thinking",), failure
        response = gateway.post(PATH, json={**BODY, "reasoning_effort": "high"})
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, "reasoning_effort", "unsupported_value")
        assert "chat_template_kwargs instead" in error["message"]
        assert gateway.post(PATH, json={**BODY, "reasoning_effort": "none"}).status_code == 200
        assert [call.request.chat_template_kwargs for call in fake.calls] == [None]

    async def test_a_tokenizer_that_takes_long_is_waited_for_like_a_first_token(
        self, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(details, "_PATIENCE_S", 0.0)
        fake.template_kwargs, fake.tokenizer_release = ("enable_thinking",), asyncio.Event()
        app = app_for(fake, first_token_timeout=77.0)
        async with Caller(app, PATH, {**BODY, "reasoning_effort": "high"}) as caller:
            await caller.reaches(lambda: fake.others)
            fake.tokenizer_release.set()
            await caller.text()
        assert (caller.status, fake.others[0][1]["timeout"]) == (200, 77.0)
        assert fake.calls[0].request.chat_template_kwargs == {"enable_thinking": True}

    async def test_a_caller_who_leaves_does_not_wait_for_the_tokenizer(self, fake: FakeClient) -> None:
        fake.tokenizer_release = asyncio.Event()
        async with Caller(app_for(fake), PATH, {**BODY, "reasoning_effort": "high"}) as caller:
            await caller.reaches(lambda: fake.others)
        assert fake.calls == []

    def test_the_look_up_goes_to_the_next_server(self, gateway: TestClient, fake: FakeClient) -> None:
        fake.template_kwargs = ("enable_thinking",)
        answers = iter([errors.ServerStoppingError("stopping"), None])
        look_up = fake.tokenizer_info

        async def stops_once(*args: Any, **options: Any) -> TokenizerInfo:
            if (failure := next(answers)) is not None:
                raise failure
            return await look_up(*args, **options)

        fake.tokenizer_info = stops_once  # type: ignore[method-assign]
        assert gateway.post(PATH, json={**BODY, "reasoning_effort": "high"}).status_code == 200


class TestStream:
    def test_chunks(self, api: OpenAI, fake: FakeClient) -> None:
        fake.script = says("月", "亮")
        chunks = list(api.chat.completions.create(model="chat", messages=MESSAGES, stream=True))
        assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
        assert [(c.choices[0].delta.role, c.choices[0].delta.content, c.choices[0].finish_reason) for c in chunks] == [
            ("assistant", "", None),
            (None, "月", None),
            (None, "亮", None),
            (None, None, "stop"),
        ]

    def test_on_the_wire(self, gateway: TestClient, fake: FakeClient) -> None:
        fake.script = says("a\u2028\r\nb")
        response = gateway.post(PATH, json={**BODY, "stream": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, done = events_of(response.text)
        assert done == "[DONE]"
        assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
            {"role": "assistant", "content": "", "refusal": None},
            {"content": "a\u2028\r\nb"},
            {},
        ]
        assert not any("usage" in chunk for chunk in chunks)

    def test_usage(self, api: OpenAI) -> None:
        stream = api.chat.completions.create(
            model="chat", messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = list(stream)
        assert all(chunk.usage is None and chunk.choices for chunk in chunks)
        assert last.choices == []
        assert last.usage
        assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (7, 4, 11)

    def test_usage_in_each_chunk(self, api: OpenAI, fake: FakeClient) -> None:
        """guidellm asks for it, always."""
        fake.script = says("a", "b", "c")
        options: Any = {"include_usage": True, "continuous_usage_stats": True}
        stream = api.chat.completions.create(model="chat", messages=MESSAGES, stream=True, stream_options=options)
        *chunks, last = list(stream)
        assert all(chunk.usage and chunk.usage.prompt_tokens == 7 and chunk.choices for chunk in chunks)
        counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
        assert (counts, counts[-1]) == (sorted(counts), 3)
        assert last.choices == []
        assert last.usage
        assert last.usage.completion_tokens == 3

    def test_each_choice_is_whole_and_in_order(self, api: OpenAI, fake: FakeClient) -> None:
        fake.script = says(*"abcdef")
        stream = api.chat.completions.create(model="chat", messages=MESSAGES, n=4, stream=True)
        by_index: dict[int, list[Any]] = {}
        for chunk in stream:
            by_index.setdefault(chunk.choices[0].index, []).append(chunk.choices[0])
        assert sorted(by_index) == [0, 1, 2, 3]
        for first, *middle, last in by_index.values():
            assert (first.delta.role, last.delta.content, last.finish_reason) == ("assistant", None, "stop")
            assert "".join(choice.delta.content for choice in middle) == "abcdef"

    def test_logprobs(self, api: OpenAI, fake: FakeClient) -> None:
        fake.script = with_logprobs
        stream = api.chat.completions.create(
            model="chat", messages=MESSAGES, stream=True, logprobs=True, top_logprobs=2
        )
        found = [chunk.choices[0].logprobs for chunk in stream]
        assert [[entry.token for entry in logprobs.content or []] for logprobs in found if logprobs] in (
            [["月"], ["亮"]],
            [["月", "亮"]],
        )


class TestErrors:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("raised", "expected", "status"),
        [
            (errors.ContextLengthError("the prompt has 9 tokens; the context holds 8"), openai.BadRequestError, 400),
            (errors.OverloadedError("full"), openai.RateLimitError, 429),
            (errors.EngineError("broken"), openai.InternalServerError, 503),
            (errors.ServerUnavailableError("away"), openai.InternalServerError, 503),
            (errors.StreamTimeoutError("no first token"), openai.InternalServerError, 503),
        ],
    )
    def test_an_early_one_is_a_status(
        self,
        api: OpenAI,
        fake: FakeClient,
        stream: bool,
        raised: errors.TritonChatError,
        expected: type[openai.APIStatusError],
        status: int,
    ) -> None:
        fake.script = fails(raised)
        with pytest.raises(expected) as caught:
            api.chat.completions.create(model="chat", messages=MESSAGES, stream=stream)
        assert caught.value.status_code == status

    def test_context_length(self, api: OpenAI, fake: FakeClient) -> None:
        fake.script = fails(errors.ContextLengthError("the prompt has 9 tokens; the context holds 8"))
        with pytest.raises(openai.BadRequestError, match=r"9 tokens.*holds 8") as caught:
            api.chat.completions.create(model="chat", messages=MESSAGES)
        assert caught.value.code == "context_length_exceeded"

    def test_the_limit_has_the_name_that_was_given(self, gateway: TestClient, fake: FakeClient) -> None:
        fake.script = fails(
            errors.ContextLengthError("9 and a prompt of 7 tokens exceed the context of 8", field="max_tokens")
        )
        for name in ("max_tokens", "max_completion_tokens"):
            assert gateway.post(PATH, json={**BODY, name: 9}).json()["error"]["param"] == name

    def test_a_late_one_is_an_event(self, api: OpenAI, fake: FakeClient) -> None:
        fake.script = fails(errors.StreamTimeoutError("no new token for 30 seconds"), "月")
        stream = api.chat.completions.create(model="chat", messages=MESSAGES, stream=True)
        assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "月"]
        with pytest.raises(openai.APIError, match="no new token"):
            next(stream)

    def test_one_choice_fails_all(self, api: OpenAI, fake: FakeClient) -> None:
        scripts = iter([hangs("x"), fails(errors.OverloadedError("full")), hangs("x")])
        fake.script = lambda call: next(scripts)(call)
        with pytest.raises(openai.RateLimitError):
            api.chat.completions.create(model="chat", messages=MESSAGES, n=3)
        assert all(stream.cancelled.wait(WAIT_S) for stream in fake.streams if "-1" not in stream.request_id)

    def test_unknown_model(self, api: OpenAI, fake: FakeClient) -> None:
        for name in ("nope", "embeddings", "chat_unary"):
            with pytest.raises(openai.NotFoundError) as caught:
                api.chat.completions.create(model=name, messages=MESSAGES)
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert fake.calls == []

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"n": 17}, "n"),
            ({"n": 10**30}, "n"),
            ({"top_logprobs": 1}, "top_logprobs"),
            ({"stop": [5]}, "stop[0]"),
            ({"chat_template": "{{ 1 }}"}, "chat_template"),
            ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
            ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
            ({"tool_choice": "always"}, "tool_choice"),
            ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "response_format"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
            ({"unheard_of": 1}, "unheard_of"),
            ({"messages": []}, "messages"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
                "messages[0].content[0].type",
            ),
        ],
    )
    def test_nothing_bad_reaches_the_engine(
        self, gateway: TestClient, fake: FakeClient, fields: dict[str, Any], param: str
    ) -> None:
        response = gateway.post(PATH, json=BODY | fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
        assert error["message"].startswith(f"{param}: ")
        assert fake.calls == []


class TestUnknownFields:
    FIELDS: ClassVar[dict[str, Any]] = {"top_a": 0, "repetition_penalties": [1]}

    def test_they_are_refused_or_as_the_settings_say_not_seen(self, fake: FakeClient) -> None:
        with TestClient(app_for(fake, unknown_fields="ignore")) as gateway:
            assert gateway.post(PATH, json=BODY | self.FIELDS).status_code == 200
            body = {"model": "chat", "prompt": "a", **self.FIELDS}
            assert gateway.post("/v1/completions", json=body).status_code == 200
            assert gateway.post("/tokenize", json={"prompt": "a", **self.FIELDS}).status_code == 200
            assert gateway.post("/v1/embeddings", json={"model": "embeddings", "input": "a", **self.FIELDS}).is_success
        assert len(fake.calls) == 2

    def test_only_those_at_the_top(self, fake: FakeClient) -> None:
        message = {"role": "user", "content": "x", "top_a": 0}
        with TestClient(app_for(fake, unknown_fields="ignore")) as gateway:
            for body, param in (
                ({**BODY, "messages": [message]}, "messages[0].top_a"),
                ({**BODY, "web_search_options": {}}, "web_search_options"),
                ({**BODY, "n": 0}, "n"),
                ([], None),
            ):
                response = gateway.post(PATH, json=body)
                assert (response.status_code, response.json()["error"]["param"]) == (400, param)


class TestLeaving:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("texts", [(), ("月",)])
    async def test_cancels_the_work(self, fake: FakeClient, stream: bool, texts: tuple[str, ...]) -> None:
        fake.script = hangs(*texts)
        async with Caller(app_for(fake), PATH, {**BODY, "stream": stream, "n": 2}) as caller:
            if stream and texts:
                await caller.chunk()
            else:
                await caller.reaches(lambda: len(fake.streams) == (2 if texts else 1))
        assert all(stream.cancelled.is_set() for stream in fake.streams)
        assert caller.status == (200 if stream and texts else 499)

    @pytest.mark.parametrize("stream", [False, True])
    def test_on_a_real_connection(self, fake: FakeClient, stream: bool) -> None:
        fake.script = hangs("月")
        with served(app_for(fake)) as url:
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=WAIT_S)
            connection.request(
                "POST", PATH, json.dumps({**BODY, "stream": stream}), {"Content-Type": "application/json"}
            )
            if stream:
                assert connection.getresponse().status == 200
            wait_until(lambda: fake.streams)
            connection.close()
            assert fake.streams[0].cancelled.wait(2)
