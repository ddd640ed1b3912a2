from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from chat_gateway.answers.generation import MAX_WAITING, Generation, Order, Prompt, check_size
from chat_gateway.errors import ApiError
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.triton import Upstream
from tests.gateway.fakes import WAIT_S, FakeClient, Script, event, fails, hangs, plays, says
from triton_chat import errors
from triton_chat.types import (
    Call,
    ChatEvent,
    PromptLogprob,
    SamplingParams,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)

NAMES = {"text_input": "prompt", "prompt_token_ids": "prompt", "max_tokens": "max_completion_tokens"}
TOOL = {"type": "function", "function": {"name": "f"}}
MESSAGES = [{"role": "user", "content": "你好"}]


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def upstream(client: FakeClient) -> Upstream:
    return Upstream(GatewaySettings(), client)


def order(*prompts: str, n: int = 1, seed: int | None = None) -> Order:
    return Order(
        model="chat",
        prompts=[Prompt(text=text) for text in prompts or ("p",)],
        sampling=SamplingParams(seed=seed),
        n=n,
        request_id="r",
    )


def by_prompt(**scripts: Script) -> Script:
    """A script for each prompt, by its text."""
    return lambda call: scripts[call.request.prompt or ""](call)


def one_after_another(*scripts: Script) -> Script:
    """A script for each call, in their order."""
    left = iter(scripts)
    return lambda call: next(left)(call)


async def drained(generation: Generation) -> list[tuple[int, ChatEvent]]:
    """Everything that comes, in order."""
    seen: list[tuple[int, ChatEvent]] = []
    async with generation:
        while not generation.complete:
            seen += (await generation.pending()).items()
    return seen


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def wait_until_cancelled(client: FakeClient) -> None:
    for stream in client.streams:
        assert await asyncio.to_thread(stream.cancelled.wait, WAIT_S)


class TestOrder:
    async def test_the_forms_of_a_prompt(self, client: FakeClient, upstream: Upstream) -> None:
        prompts = [Prompt(messages=MESSAGES), Prompt(text="text"), Prompt(token_ids=[1, 2])]
        await Generation(upstream, Order(model="m", prompts=prompts, sampling=SamplingParams(), echo=True)).results()
        requests = [call.request for call in client.calls]
        assert [(r.messages, r.prompt, r.prompt_token_ids) for r in requests] == [
            (MESSAGES, None, None),
            (None, "text", None),
            (None, None, [1, 2]),
        ]
        assert not any(request.exclude_input_in_output for request in requests)
        assert {call.model for call in client.calls} == {"m"}

    async def test_what_goes_along(self, client: FakeClient, upstream: Upstream) -> None:
        asked = Order(
            model="chat",
            prompts=[Prompt(messages=MESSAGES)],
            sampling=SamplingParams(max_tokens=3),
            request_id="r",
            chat={"add_generation_prompt": False, "tools": [TOOL]},
            headers={"traceparent": "t"},
        )
        await Generation(upstream, asked).results()
        (call,) = client.calls
        assert (call.request_id, call.headers, call.request.add_generation_prompt) == (
            "r-0",
            {"traceparent": "t"},
            False,
        )
        assert call.request.tools == [TOOL]
        assert call.request.sampling == SamplingParams(max_tokens=3)
        assert call.request.exclude_input_in_output

    @pytest.mark.parametrize(
        ("seed", "sent"),
        [(None, [None] * 4), (7, [7, 8, 7, 8]), (-1, [2**64 - 1, 0, 2**64 - 1, 0]), (2**64, [0, 1, 0, 1])],
    )
    async def test_seeds_count_up_within_a_prompt(
        self, client: FakeClient, upstream: Upstream, seed: int | None, sent: list[int | None]
    ) -> None:
        await Generation(upstream, order("a", "b", n=2, seed=seed)).results()
        by_id = {call.request_id: call.request.sampling.seed for call in client.calls}
        assert [by_id[f"r-{index}"] for index in range(4)] == sent


class TestEvents:
    async def test_one_choice(self, client: FakeClient, upstream: Upstream) -> None:
        seen = await drained(Generation(upstream, order()))
        assert [(index, e.text, e.finish_reason) for index, e in seen] == [(0, "Hello", ""), (0, " there", "stop")]

    async def test_an_index_is_prompt_times_n_plus_choice(self, client: FakeClient, upstream: Upstream) -> None:
        client.script = by_prompt(a=says("A"), b=says("B"))
        seen = await drained(Generation(upstream, order("a", "b", n=3)))
        assert {index: e.text for index, e in seen} == {0: "A", 1: "A", 2: "A", 3: "B", 4: "B", 5: "B"}

    async def test_the_others_wait_until_the_prompt_is_cached(self, client: FakeClient, upstream: Upstream) -> None:
        go = asyncio.Event()

        async def script(_: Call) -> AsyncIterator[ChatEvent]:
            await go.wait()
            yield event("x", 1, "stop")

        client.script = script
        async with Generation(upstream, order("a", "b", n=3)) as generation:
            await settle()
            assert [call.request_id for call in client.calls] == ["r-0", "r-3"]
            go.set()
            while not generation.complete:
                await generation.pending()
        assert sorted(call.request_id for call in client.calls) == [f"r-{index}" for index in range(6)]

    async def test_what_nobody_took_is_joined(self, client: FakeClient, upstream: Upstream) -> None:
        logprob = TokenLogprob("x", -1.0, None)

        async def script(_: Call) -> AsyncIterator[ChatEvent]:
            yield ChatEvent("a", num_output_tokens=1, logprobs=(logprob,))
            yield ChatEvent("b", num_output_tokens=2, logprobs=(logprob, logprob))
            yield ChatEvent("", "length", num_output_tokens=3)

        client.script = script
        async with Generation(upstream, order()) as generation:
            await settle()
            assert await generation.pending() == {0: ChatEvent("ab", "length", 0, 3, 0, (logprob,) * 3)}
            assert generation.complete
            assert await generation.pending() == {}

    async def test_results_keep_the_order(self, client: FakeClient, upstream: Upstream) -> None:
        client.script = by_prompt(a=says("1", "2", "3"), b=says("4", finish_reason="length"))
        results = await Generation(upstream, order("a", "b")).results()
        assert [(r.text, r.finish_reason, r.num_output_tokens) for r in results] == [
            ("123", "stop", 3),
            ("4", "length", 1),
        ]

    async def test_usage_counts_a_prompt_once(self, client: FakeClient, upstream: Upstream) -> None:
        generation = Generation(upstream, order("a", "b", n=3))
        await generation.results()
        usage = generation.usage()
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2 * 7, 6 * 2, 26)
        assert usage.prompt_tokens_details
        assert usage.prompt_tokens_details.cached_tokens == 2 * 3

    async def test_usage_counts_the_reasoning_of_each_choice(self, client: FakeClient, upstream: Upstream) -> None:
        client.script = plays(
            ChatEvent("", "", 7, 3, reasoning="hm", num_reasoning_tokens=3),
            ChatEvent("x", "stop", 7, 4, num_reasoning_tokens=3),
        )
        generation = Generation(upstream, order(n=2))
        await generation.results()
        details = generation.usage().completion_tokens_details
        assert details
        assert (generation.usage().completion_tokens, details.reasoning_tokens) == (8, 6)

    async def test_nudge_ends_the_wait(self, client: FakeClient, upstream: Upstream) -> None:
        client.script = hangs()
        async with Generation(upstream, order()) as generation:
            asyncio.get_running_loop().call_soon(generation.nudge)
            assert await generation.pending() == {}
            assert not generation.complete


WAITING = ChatEvent("", num_input_tokens=7, num_cached_tokens=3)
"""What Triton sends while a request waits."""


class TestWaiting:
    async def test_a_sign_of_life_is_no_event(self, client: FakeClient, upstream: Upstream) -> None:
        again = replace(WAITING, num_output_tokens=1)
        client.script = plays(WAITING, WAITING, event("a"), again, again, event("b", 2, "stop"))
        async with Generation(upstream, order()) as generation:
            await settle()
            assert {index: e.text for index, e in (await generation.pending()).items()} == {0: "ab"}

    async def test_nothing_has_begun_with_it(self, client: FakeClient, upstream: Upstream) -> None:
        """Neither the other choices, nor the answer: another server may still give it."""

        async def waits_in_vain(_: Call) -> AsyncIterator[ChatEvent]:
            yield WAITING
            await settle()
            assert len(client.streams) == 1
            raise errors.ServerUnavailableError("gone")

        client.script = one_after_another(waits_in_vain, says("a"), says("b"))
        results = await Generation(upstream, order(n=2)).results()
        assert [result.text for result in results] == ["a", "b"]

    @pytest.mark.parametrize(
        "told",
        [
            {"num_output_tokens": 1},
            {"text": "a"},
            {"reasoning": "a"},
            {"finish_reason": "length"},
            {"tool_calls": (ToolCallDelta(0, id="c", name="f"),)},
            {"logprobs": (TokenLogprob("a", -1.0, None),)},
            {"prompt_logprobs": (PromptLogprob("a", None, None, 5),)},
            {"token_ids": (5,)},
            {"prompt_token_ids": (5,)},
        ],
    )
    async def test_whatever_tells_something_is_one(
        self, client: FakeClient, told: dict[str, Any], upstream: Upstream
    ) -> None:
        said = replace(WAITING, **told)
        client.script = plays(said, event("", 2, "stop"))
        async with Generation(upstream, order()) as generation:
            await settle()
            assert (await generation.pending())[0] == said.joined(event("", 2, "stop"))


class TestSlowReader:
    async def test_no_more_is_read_than_may_wait(self, client: FakeClient, upstream: Upstream) -> None:
        piece, made = "x" * (MAX_WAITING // 4), 0

        async def script(_: Call) -> AsyncIterator[ChatEvent]:
            nonlocal made
            for count in range(1, 101):
                made = count
                yield event(piece, count, "stop" if count == 100 else "")

        client.script = script
        text = 0
        async with Generation(upstream, order()) as generation:
            await settle()
            assert made == 5
            while not generation.complete:
                found = [len(e.text) for e in (await generation.pending()).values()]
                assert sum(found) <= 5 * len(piece)
                text += sum(found)
        assert text == 100 * len(piece)

    async def test_log_probabilities_count(self, client: FakeClient, upstream: Upstream) -> None:
        logprobs = (TokenLogprob("a", -1.0, None, (TopLogprob("a", -1.0, None),) * 20),) * 200
        made = 0

        async def script(_: Call) -> AsyncIterator[ChatEvent]:
            nonlocal made
            for made in range(1, 101):
                yield replace(event("a", made), logprobs=logprobs)

        client.script = script
        async with Generation(upstream, order()) as generation:
            await settle()
            assert made == 1
            await generation.pending()

    async def test_choices_share_the_room(self, client: FakeClient, upstream: Upstream) -> None:
        client.script = says(*["x" * MAX_WAITING] * 9, "end")
        async with Generation(upstream, order("a", "b")) as generation:
            while not generation.complete:
                assert sum(len(e.text) for e in (await generation.pending()).values()) <= 4 * MAX_WAITING


class TestFailure:
    async def test_it_comes_after_what_came_before_and_ends_the_others(
        self, client: FakeClient, upstream: Upstream
    ) -> None:
        client.script = by_prompt(a=hangs("one"), b=fails(errors.OverloadedError("full"), "two"))
        async with Generation(upstream, order("a", "b")) as generation:
            await settle()
            assert {index: e.text for index, e in (await generation.pending()).items()} == {0: "one", 1: "two"}
            with pytest.raises(errors.OverloadedError):
                await generation.pending()
            assert not generation.complete
        assert client.streams[0].cancelled.is_set()

    async def test_the_others_never_begin_if_the_first_fails(self, client: FakeClient, upstream: Upstream) -> None:
        client.script = fails(errors.ContextLengthError("too long"))
        with pytest.raises(errors.ContextLengthError):
            await Generation(upstream, order(n=4)).results()
        assert len(client.streams) == 1

    @pytest.mark.parametrize(
        ("prompts", "field", "called"),
        [
            (("a",), "text_input", "prompt"),
            (("a", "b"), "prompt_token_ids", "prompt[1]"),
            (("a", "b"), "prompt_token_ids[3]", "prompt[1][3]"),
            (("a",), "max_tokens", "max_completion_tokens"),
            (("a", "b"), "temperature", "temperature"),
            (("a", "b"), None, "prompt[1]"),
            (("a",), None, None),
        ],
    )
    async def test_a_field_is_called_what_the_caller_calls_it(
        self, client: FakeClient, upstream: Upstream, prompts: Sequence[str], field: str | None, called: str | None
    ) -> None:
        failing = fails(errors.ContextLengthError("x: not 9", field=field))
        client.script = by_prompt(**{**dict.fromkeys(prompts, says("x")), prompts[-1]: failing})
        with pytest.raises(errors.ContextLengthError) as caught:
            await Generation(upstream, replace(order(*prompts), names=NAMES)).results()
        assert (caught.value.field, caught.value.sentence) == (called, "x: not 9")

    async def test_leaving_cancels_all(self, client: FakeClient, upstream: Upstream) -> None:
        client.script = hangs("one")
        async with Generation(upstream, order("a", "b", n=2)) as generation:
            while len(client.streams) < 4:
                await generation.pending()
        await wait_until_cancelled(client)

    async def test_cancelling_the_waiting_task_cancels_all(self, client: FakeClient, upstream: Upstream) -> None:
        client.script = hangs("one")
        task = asyncio.create_task(Generation(upstream, order("a", "b")).results())
        await settle()
        assert len(client.streams) == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until_cancelled(client)

    async def test_a_stream_cancelled_by_somebody_else_is_a_failure(
        self, client: FakeClient, upstream: Upstream
    ) -> None:
        client.script = hangs("one")
        async with Generation(upstream, order()) as generation:
            await generation.pending()
            asyncio.get_running_loop().call_soon(client.streams[0].cancel)
            with pytest.raises(errors.RequestCancelledError):
                await generation.pending()


class TestSignsOfLife:
    """What the engine sends while a request waits."""

    async def test_they_are_no_first_token(self, client: FakeClient, upstream: Upstream) -> None:
        go = asyncio.Event()

        async def script(_: Call) -> AsyncIterator[ChatEvent]:
            yield ChatEvent("")
            yield ChatEvent("", num_input_tokens=7)
            await go.wait()
            yield event("x", 1, "stop")

        client.script = script
        async with Generation(upstream, order(n=2)) as generation:
            await settle()
            assert len(client.calls) == 1  # the other choice waits
            asyncio.get_running_loop().call_soon(generation.nudge)
            assert await generation.pending() == {}
            go.set()
            while not generation.complete:
                await generation.pending()

    async def test_nor_are_they_events_later(self, client: FakeClient, upstream: Upstream) -> None:
        held_back = ChatEvent("", num_output_tokens=2)
        client.script = plays(event("a", 1), event("", 1), held_back, ChatEvent("", num_output_tokens=2), event("b", 3))
        generation = Generation(upstream, order())
        seen: list[tuple[int, ChatEvent]] = []
        add = generation._add
        generation._add = lambda index, one: (seen.append((index, one)), add(index, one))[1]  # type: ignore[method-assign]
        await generation.results()
        assert [one.num_output_tokens for _, one in seen] == [1, 2, 3]

    @pytest.mark.parametrize(
        "telling",
        [
            ChatEvent("x"),
            ChatEvent("", "length"),
            ChatEvent("", reasoning="x"),
            ChatEvent("", num_output_tokens=1),
            ChatEvent("", prompt_token_ids=(1,)),
            ChatEvent("", prompt_logprobs=(None,)),  # type: ignore[arg-type]
        ],
    )
    async def test_what_tells_something_is_none(
        self, client: FakeClient, upstream: Upstream, telling: ChatEvent
    ) -> None:
        client.script = plays(telling)
        async with Generation(upstream, order()) as generation:
            assert await generation.pending() == {0: telling}


class TestAnotherServer:
    @pytest.mark.parametrize("gone", [errors.ServerUnavailableError("gone"), errors.ServerStoppingError("stopping")])
    async def test_what_has_not_begun_is_begun_anew(
        self, client: FakeClient, upstream: Upstream, gone: Exception
    ) -> None:
        client.script = one_after_another(fails(gone), says("a", "b"))
        (result,) = await Generation(upstream, order()).results()
        assert (result.text, result.num_output_tokens) == ("ab", 2)
        assert [call.request_id for call in client.calls] == ["r-0", "r-0"]

    async def test_what_has_begun_is_not(self, client: FakeClient, upstream: Upstream) -> None:
        for gone in (errors.ServerUnavailableError("gone"), errors.ServerStoppingError("stopping")):
            client.script = one_after_another(fails(gone, "a"), says("never"))
            with pytest.raises(errors.ServerUnavailableError):
                await Generation(upstream, order()).results()
        assert len(client.calls) == 2

    async def test_each_choice_for_itself(self, client: FakeClient, upstream: Upstream) -> None:
        gone = errors.ServerUnavailableError("gone")
        client.script = one_after_another(fails(gone), says("a"), fails(gone), says("b"))
        results = await Generation(upstream, order(n=2)).results()
        assert [result.text for result in results] == ["a", "b"]
        assert [call.request_id for call in client.calls] == ["r-0", "r-0", "r-1", "r-1"]

    @pytest.mark.parametrize(
        "failure",
        [
            errors.OverloadedError("full"),
            errors.EngineError("failed"),
            errors.StreamTimeoutError("slow"),
            errors.InvalidRequestError("wrong"),
            errors.ModelNotFoundError("which"),
            errors.RequestCancelledError("left"),
        ],
    )
    async def test_no_other_failure_is_repeated(
        self, client: FakeClient, upstream: Upstream, failure: errors.TritonChatError
    ) -> None:
        client.script = fails(failure)
        with pytest.raises(type(failure)):
            await Generation(upstream, order()).results()
        assert len(client.calls) == 1


class TestSize:
    def test_as_many_as_allowed(self) -> None:
        check_size(4, 4, limit=16)

    @pytest.mark.parametrize(
        ("prompts", "n", "param"), [(1, 17, "n"), (17, 1, "prompt"), (2, 9, "prompt"), (1, 2**31, "n")]
    )
    def test_too_many(self, prompts: int, n: int, param: str) -> None:
        with pytest.raises(ApiError, match="at most 16") as caught:
            check_size(prompts, n, limit=16)
        assert (caught.value.status, caught.value.param) == (400, param)
