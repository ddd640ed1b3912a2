"""The client for threads and the one for asyncio offer the same calls, ask the same and answer the same."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.client import fake_server
from tests.client.fake_embeddings import FakeEmbeddings
from tests.client.fake_server import WAIT_S, FakeTriton, fail
from triton_chat import errors
from triton_chat.client import AsyncChatClient, ChatClient
from triton_chat.types import Timeouts

Run = Callable[..., Any]
STREAMS = {"stream": ("ChatStream", "AsyncChatStream")}
"""Not awaited: what they return differs in its place."""


def public(client: type) -> set[str]:
    return {name for name in dir(client) if not name.startswith("_")}


METHODS = sorted(public(ChatClient) | public(AsyncChatClient))


def raises(method: Callable[..., object]) -> str:
    """The part of a docstring that names errors."""
    return (inspect.getdoc(method) or "").partition("Raises:")[2]


def test_the_same_methods() -> None:
    assert public(ChatClient) == public(AsyncChatClient)
    assert inspect.signature(ChatClient) == inspect.signature(AsyncChatClient)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_signature(method: str) -> None:
    waits, awaited = getattr(ChatClient, method), getattr(AsyncChatClient, method)
    ours, theirs = inspect.signature(waits), inspect.signature(awaited)
    assert list(ours.parameters.values()) == list(theirs.parameters.values())
    assert raises(waits) == raises(awaited)
    assert not inspect.iscoroutinefunction(waits)
    if method in STREAMS:
        assert (ours.return_annotation, theirs.return_annotation) == STREAMS[method]
    else:
        assert ours.return_annotation == theirs.return_annotation
        assert inspect.iscoroutinefunction(awaited)


def run_sync(url: str, method: str, *arguments: Any, timeouts: Timeouts | None = None, **options: Any) -> Any:
    with ChatClient(url, timeouts=timeouts) as client:
        return getattr(client, method)(*arguments, **options)


def run_async(url: str, method: str, *arguments: Any, timeouts: Timeouts | None = None, **options: Any) -> Any:
    async def call() -> Any:
        async with AsyncChatClient(url, timeouts=timeouts) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(call())


@pytest.fixture(params=[run_sync, run_async], ids=["threads", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Makes one call with either client."""
    return request.param


@pytest.fixture
def embedder() -> Iterator[FakeEmbeddings]:
    server = FakeEmbeddings()
    yield server
    server.stop()


CALLS = {
    "is_live": (),
    "check_live": (),
    "is_ready": (),
    "server_metadata": (),
    "models": (),
    "tokenize": ("hi",),
    "detokenize": ([104, 105],),
    "generate_batch": (["hi", "ho"],),
}


@pytest.mark.parametrize("method", CALLS)
def test_the_same_answer_to_the_same_request(fake: FakeTriton, method: str) -> None:
    fake.states["else"] = "READY"  # has no config: an error on the way that the call deals with
    answers = [str_of(each(fake.url, method, *CALLS[method])) for each in (run_sync, run_async)]
    assert answers[0] == answers[1]
    sent = [strip_id(received.message) for received in fake.requests]
    assert sent[: len(sent) // 2] == sent[len(sent) // 2 :]
    assert fake.configs_asked == (["chat", "else"] * 2 if method == "models" else [])


def str_of(answer: Any) -> str:
    """Without how long it took."""
    if isinstance(answer, list) and hasattr(answer[0], "duration_s"):
        return str([(result.text, result.finish_reason, result.ttft_s) for result in answer])
    return str(answer)


def strip_id(message: Any) -> Any:
    message.id = ""
    return message


@pytest.mark.parametrize(
    "method", ["check_live", "server_metadata", "models", "tokenize", "detokenize", "generate_batch", "generate"]
)
def test_nobody_there(run: Run, method: str) -> None:
    with pytest.raises(errors.ServerUnavailableError, match="is it running") as raised:
        run("127.0.0.1:1", method, *CALLS.get(method, ("hi",)))
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("method", ["check_live", "models", "generate"])
def test_somebody_who_is_stuck(run: Run, method: str) -> None:
    """The system takes the connection, and the server says nothing on it."""
    with socket.create_server(("127.0.0.1", 0)) as stuck:
        url = f"127.0.0.1:{stuck.getsockname()[1]}"
        with pytest.raises(errors.ServerSilentError, match="does not answer"):
            run(url, method, *CALLS.get(method, ("hi",)), timeouts=Timeouts(connect=0.1))
        assert run(url, "is_live", timeouts=Timeouts(connect=0.1)) is False


@pytest.mark.parametrize("method", ["is_live", "is_ready"])
def test_nobody_there_is_no_error_where_that_is_the_question(run: Run, method: str) -> None:
    assert run("127.0.0.1:1", method) is False


def test_a_stopping_server(fake: FakeTriton, run: Run) -> None:
    fake.stopping = True
    assert run(fake.url, "is_ready", "chat") is False
    with pytest.raises(errors.ServerStoppingError):
        run(fake.url, "models")


def test_a_time_limit_of_the_call_and_of_the_client(embedder: FakeEmbeddings, run: Run) -> None:
    with pytest.raises(errors.StreamTimeoutError):
        run(embedder.url, "embed", ["stall"], timeout=0.1)
    with pytest.raises(errors.StreamTimeoutError):
        run(embedder.url, "embed", ["stall"], timeouts=Timeouts(batch=0.1))
    assert all(received.cancelled.wait(WAIT_S) for received in embedder.requests)


def test_the_clients_limit_for_control_calls(fake: FakeTriton, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_server, "tokenize", fake.stall)
    with pytest.raises(errors.StreamTimeoutError):
        run(fake.url, "tokenize", "x", timeouts=Timeouts(control=0.1))


def test_a_refused_input_is_named_by_its_place(embedder: FakeEmbeddings, run: Run) -> None:
    with pytest.raises(errors.InvalidRequestError, match="row 99"):
        run(embedder.url, "embed", [*["a"] * 99, "bad"])


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("tokenize", ()), ("embed", ([],)), ("generate_batch", ([],)), ("generate", (None,))],
)
def test_what_cannot_be_asked_is_not_sent(fake: FakeTriton, run: Run, method: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(errors.InvalidRequestError):
        run(fake.url, method, *arguments)
    assert fake.requests == []


def test_an_error_in_a_stream(fake: FakeTriton, run: Run) -> None:
    fake.reply = lambda _: iter([fail("Exceeds maximum queue size")])
    with pytest.raises(errors.OverloadedError):
        run(fake.url, "generate", "hi")


async def test_cancelling_the_task_cancels_the_request(fake: FakeTriton) -> None:
    async with AsyncChatClient(fake.url) as client:
        task = asyncio.create_task(client.generate_batch(prompts=["stall"]))
        received = await asyncio.to_thread(fake.next_request)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(received.cancelled.wait, WAIT_S)


class Interrupted:
    """An RPC in whose place Ctrl-C comes."""

    cancelled = False

    def future(self, request: object, **options: object) -> Interrupted:
        return self

    def result(self) -> object:
        raise KeyboardInterrupt

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.parametrize(("method", "rpc"), [("is_live", "ServerLive"), ("generate_batch", "ModelInfer")])
def test_ctrl_c_cancels_the_request(client: ChatClient, method: str, rpc: str) -> None:
    interrupted = Interrupted()
    setattr(client._stub, rpc, interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(client, method)(*CALLS[method])
    assert interrupted.cancelled
