from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage

from chat_gateway.answers.generation import Generation, Order, Prompt
from chat_gateway.answers.sse import DONE, KEEP_ALIVE, EventStream, Silence, data
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.triton import Upstream
from tests.gateway.callers import Caller, events_of
from tests.gateway.fakes import WAIT_S, FakeClient, event, fails, hangs, plays
from triton_chat import errors
from triton_chat.types import Call, ChatEvent, SamplingParams

ORDER = Order(model="chat", prompts=[Prompt(text="p")], sampling=SamplingParams())
QUICK = 0.01
LONG = 600.0


class Words:
    """Chunks that are the bare texts."""

    def encode(self, index: int, event: ChatEvent) -> bytes:
        return event.text.encode()

    def usage(self, usage: CompletionUsage) -> bytes:
        return f"<{usage.total_tokens}>".encode()


def stream_of(fake: FakeClient, keep_alive: float = LONG) -> EventStream:
    return EventStream(
        Generation(Upstream(GatewaySettings(), fake), ORDER), Words(), GatewaySettings(keep_alive=keep_alive)
    )


async def wait_until_cancelled(fake: FakeClient) -> None:
    assert await asyncio.to_thread(fake.streams[-1].cancelled.wait, WAIT_S)


async def test_a_whole_stream(fake: FakeClient) -> None:
    stream = stream_of(fake)
    async with Caller(stream) as caller:
        assert await caller.text() == "Hello there<9>" + DONE.decode()
    assert caller.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in stream.headers
    assert not fake.streams[0].cancelled.is_set()


async def test_chunks_leave_as_they_come(fake: FakeClient) -> None:
    go = asyncio.Event()

    async def script(_: Call) -> AsyncIterator[ChatEvent]:
        yield event("one")
        await go.wait()
        yield event("two", 2, "stop")

    fake.script = script
    async with Caller(stream_of(fake)) as caller:
        assert await caller.chunk() == b"one"
        go.set()
        assert await caller.chunk() == b"two"


async def test_an_early_error_is_raised_before_anything_is_sent(fake: FakeClient) -> None:
    fake.script = fails(errors.OverloadedError("full"))
    caller = Caller(stream_of(fake))
    with pytest.raises(errors.OverloadedError):
        async with caller:
            assert await caller.chunk() is None
    assert caller.status is None


async def test_a_late_error_is_the_last_event(fake: FakeClient) -> None:
    fake.script = fails(errors.EngineError("secret"), "one")
    async with Caller(stream_of(fake)) as caller:
        text = await caller.text()
    assert caller.status == 200
    assert text.startswith("one")
    (error,) = events_of(text.removeprefix("one"))
    assert error["error"] | {"message": ""} == {
        "message": "",
        "type": "service_unavailable_error",
        "param": None,
        "code": "engine_failed",
    }
    assert "secret" not in text


async def test_a_bug_breaks_the_connection(fake: FakeClient) -> None:
    async def script(_: Call) -> AsyncIterator[ChatEvent]:
        yield event("one")
        raise ZeroDivisionError

    fake.script = script
    caller = Caller(stream_of(fake))
    with pytest.raises(ZeroDivisionError):
        async with caller:
            assert await caller.text() == "one"


class TestLeaving:
    async def test_before_the_first_event(self, fake: FakeClient) -> None:
        fake.script = hangs()
        caller = Caller(stream_of(fake, keep_alive=QUICK))
        with pytest.raises(errors.RequestCancelledError):
            async with caller:
                await asyncio.sleep(0.05)  # longer than the silence that would bring a comment
        assert caller.status is None
        await wait_until_cancelled(fake)

    async def test_in_the_middle(self, fake: FakeClient) -> None:
        fake.script = hangs("one")
        async with Caller(stream_of(fake)) as caller:
            assert await caller.chunk() == b"one"
        await wait_until_cancelled(fake)
        assert await caller.chunk() is None

    async def test_while_the_server_cannot_send(self, fake: FakeClient) -> None:
        fake.script = hangs("one")
        stuck = asyncio.Event()

        async def send(_: object) -> None:
            stuck.set()
            await asyncio.Event().wait()

        async def receive() -> dict[str, str]:
            await stuck.wait()
            return {"type": "http.disconnect"}

        await asyncio.wait_for(stream_of(fake)({}, receive, send), WAIT_S)
        await wait_until_cancelled(fake)


class TestKeepAlive:
    async def test_silence_is_filled(self, fake: FakeClient) -> None:
        fake.script = hangs("one")
        async with Caller(stream_of(fake, keep_alive=QUICK)) as caller:
            assert [await caller.chunk() for _ in range(3)] == [b"one", KEEP_ALIVE, KEEP_ALIVE]

    async def test_not_in_a_busy_stream(self, fake: FakeClient) -> None:
        async def script(_: Call) -> AsyncIterator[ChatEvent]:
            for count in range(20):
                yield event(".", count, "stop" if count == 19 else "")
                await asyncio.sleep(0.01)

        fake.script = script
        async with Caller(stream_of(fake, keep_alive=0.15)) as caller:
            assert (await caller.text()).startswith("." * 20)

    async def test_what_nobody_sees_is_silence(self, fake: FakeClient) -> None:
        """Such as reasoning that the caller does not want; and it is not filled more often than silence is."""

        async def script(_: Call) -> AsyncIterator[ChatEvent]:
            for text in ("one", "", ""):
                yield event(text)
            await asyncio.Event().wait()

        fake.script = script
        async with Caller(stream_of(fake, keep_alive=QUICK)) as caller:
            assert [await caller.chunk() for _ in range(3)] == [b"one", KEEP_ALIVE, KEEP_ALIVE]
        fake.script = plays(event("one"), *[event("")] * 20, event("two", 2, "stop"))
        async with Caller(stream_of(fake)) as caller:
            assert KEEP_ALIVE.decode() not in await caller.text()

    async def test_signs_of_life_begin_nothing_and_become_comments(self, fake: FakeClient) -> None:
        go, waits = asyncio.Event(), asyncio.Event()

        async def script(_: Call) -> AsyncIterator[ChatEvent]:
            yield event("", 0)
            waits.set()
            await go.wait()
            yield event("one", 1)
            while True:
                yield event("", 1)
                await asyncio.sleep(QUICK / 2)

        fake.script = script
        async with Caller(stream_of(fake, keep_alive=QUICK)) as caller:
            await waits.wait()
            await asyncio.sleep(5 * QUICK)  # longer than the silence that would bring a comment
            assert caller.status is None
            go.set()
            assert [await caller.chunk() for _ in range(3)] == [b"one", KEEP_ALIVE, KEEP_ALIVE]

    async def test_the_timer_ends_with_the_block(self) -> None:
        notified = asyncio.Event()
        with Silence(QUICK, notified.set):
            await asyncio.wait_for(notified.wait(), WAIT_S)
            notified.clear()
            await asyncio.wait_for(notified.wait(), WAIT_S)
        notified.clear()
        await asyncio.sleep(5 * QUICK)
        assert not notified.is_set()


@given(st.text())
def test_an_event_is_one_line_to_every_reader(text: str) -> None:
    sent = data(json.dumps(text, ensure_ascii=False)).decode()
    assert sent.splitlines() == [sent.removesuffix("\n\n"), ""]
    assert events_of(sent) == [text]
