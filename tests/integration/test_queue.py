"""The backlog is in Triton's queue: priorities, limits, timeouts, and callers who leave while they wait.

The server has one place, takes two waiting requests a priority level, and lets them wait 1.5 seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.triton import LocalTriton
from tests.integration.calls import (
    LONG,
    Metrics,
    Stream,
    connect,
    eventually,
    infer,
    pending,
    post,
    request,
    settled,
    unbatched,
)
from tests.integration.servers import ServerFactory
from triton_chat.client import AsyncChatClient

pytestmark = pytest.mark.alone

HIGH, NORMAL, LOW = 1, 2, 3
LIMITS = {
    "max_queue_size: 256": "max_queue_size: 2",
    "default_timeout_microseconds: 60000000": "default_timeout_microseconds: 1500000",
}


@pytest.fixture(scope="module")
def narrow(able_to_serve: None, engine_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    servers = ServerFactory(tmp_path_factory.mktemp("narrow"), engine_name)
    try:
        yield servers({"max_sequences": 1, "max_step_tokens": 16, "threads": 1}, config_overrides={"chat": LIMITS})
    finally:
        servers.stop_all()


@pytest.fixture
def stub(narrow: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with connect(narrow) as stub:
        yield stub


class Backlog:
    """The only place is taken by `running`, and `next` stands at the engine's door; everybody else is in the queue."""

    def __init__(self, server: LocalTriton, stub: GRPCInferenceServiceStub, next_is_long: bool) -> None:
        self._server = server
        self._stub = stub
        self.before = settled(server)
        self.running = Stream(stub, request(text_input="Once", sampling_parameters=LONG)).started()
        self.next = self.add(parameters={"max_tokens": 2000} if next_is_long else None)
        self._await_the_door()

    def add(self, priority: int | None = None, with_status: bool = False, **options: object) -> Stream:
        options["parameters"] = options.get("parameters") or {"max_tokens": 30}
        message = request(text_input="Then", sampling_parameters={"ignore_eos": True}, priority=priority, **options)
        return Stream(self._stub, message, with_status)

    def queue(self, *priorities: int) -> list[Stream]:
        """Adds requests, each of them when the one before is in the queue."""
        streams = []
        for length, priority in enumerate(priorities, start=self.length + 1):
            streams.append(self.add(priority))
            eventually(lambda length=length: self.length == length, within=2)
        return streams

    @property
    def length(self) -> int:
        return int(pending(Metrics(self._server)))

    def _await_the_door(self) -> None:
        """No number says that a request is at the door; one that was not in the queue for a while is there."""
        since = time.monotonic()

        def empty_for_a_while() -> bool:
            nonlocal since
            if self.length:
                since = time.monotonic()
            return time.monotonic() - since > 0.15

        eventually(empty_for_a_while, within=5)

    def close(self) -> None:
        self.running.cancel()
        self.next.cancel()


@contextmanager
def backlog(server: LocalTriton, stub: GRPCInferenceServiceStub, next_is_long: bool = False) -> Iterator[Backlog]:
    found = Backlog(server, stub, next_is_long)
    try:
        yield found
    finally:
        found.close()
        eventually(lambda: found.length == 0, within=10)


def order(streams: dict[str, Stream]) -> list[str]:
    """Names, by when they ended."""
    for stream in streams.values():
        assert stream.wait().error == ""
    return sorted(streams, key=lambda name: streams[name].ended_at)


def test_the_queue_gauge_shows_the_backlog(narrow: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    with backlog(narrow, stub) as waiting:
        waiting.queue(NORMAL, NORMAL)
        assert pending(Metrics(narrow)) == 2
    eventually(lambda: pending(Metrics(narrow)) == 0, within=5)


def test_a_high_priority_goes_before_what_waits(narrow: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    with backlog(narrow, stub) as waiting:
        low1, low2, normal, high = waiting.queue(LOW, LOW, NORMAL, HIGH)
        waiting.running.cancel()
        streams = {"next": waiting.next, "low1": low1, "low2": low2, "normal": normal, "high": high}
        assert order(streams) == ["next", "high", "normal", "low1", "low2"]


def test_only_the_group_in_hand_goes_before_a_high_priority(
    narrow: LocalTriton, stub: GRPCInferenceServiceStub
) -> None:
    """`execute` has at most max_batch_size requests in hand; Triton can no longer put anything before those."""
    with urllib.request.urlopen(narrow.http_url + "/v2/models/chat/config") as page:
        group = json.load(page)["max_batch_size"]
    with backlog(narrow, stub, next_is_long=True) as waiting:
        low1, low2, normal1, normal2 = waiting.queue(LOW, LOW, NORMAL, NORMAL)
        waiting.running.cancel()
        waiting.next.started()
        left = max(0, 4 - group)
        eventually(lambda: waiting.length == left, within=2)
        (high,) = waiting.queue(HIGH)
        waiting.next.cancel()
        ended = order({"low1": low1, "low2": low2, "normal1": normal1, "normal2": normal2, "high": high})
        assert ended == [*ALL[:group], "high", *ALL[group:]]


ALL = ["normal1", "normal2", "low1", "low2"]


def test_a_full_queue_refuses_at_once(narrow: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    with backlog(narrow, stub) as waiting:
        waiting.queue(NORMAL, NORMAL)
        began = time.monotonic()
        refused = waiting.add(NORMAL).wait()
        assert (refused.answers, "Exceeds maximum queue size" in refused.error) == ([], True)
        assert infer(stub, request("chat_unary", text_input="a")).code == "UNAVAILABLE"
        forwarded = Stream(stub, unbatched(request("vllm_model", text_input="a")), with_status=True).wait()
        assert (forwarded.code, "Exceeds maximum queue size" in forwarded.error) == ("UNAVAILABLE", True)
        status, body = post(narrow.http_url + "/v2/models/chat/generate_stream", {"text_input": "a"})
        assert (status, "Exceeds maximum queue size" in body) == (503, True)
        assert time.monotonic() - began < 5, "not the queue's time limit"
        waiting.queue(HIGH)  # each level has a limit of its own


def test_waiting_too_long_is_unavailable(narrow: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    """A request may shorten its time, not lengthen it. Triton looks twice a second; the time in hand counts anew."""
    with backlog(narrow, stub, next_is_long=True) as waiting:
        began = time.monotonic()
        impatient = waiting.add(NORMAL, timeout_s=0.1, with_status=True)
        patient = waiting.add(NORMAL, timeout_s=60, with_status=True)
        assert (impatient.wait().code, impatient.wait().error) == ("UNAVAILABLE", "Request timeout expired")
        assert impatient.ended_at - began < 1.2
        assert not patient.is_over
        assert "no room within 1.5 seconds, as long as it may wait" in waiting.next.wait().error
        assert waiting.next.ended_at - began < 1.7
        assert (patient.wait().code, patient.wait().answers) == ("UNAVAILABLE", [])
        assert 1.4 < patient.ended_at - began < 3.6


def test_in_hand_a_request_waits_no_longer_than_it_wants(narrow: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    running = Stream(stub, request(text_input="Once", sampling_parameters=LONG)).started()
    began = time.monotonic()
    impatient = Stream(stub, request(text_input="Then", timeout_s=0.3)).wait()
    assert "no room within 0.3 seconds" in impatient.error
    assert "[code=overloaded]" in impatient.error
    assert 0.3 <= time.monotonic() - began < 1.2
    running.cancel()
    settled(narrow)


def test_all_of_the_group_in_hand_wait_and_may_leave(narrow: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    with backlog(narrow, stub, next_is_long=True) as waiting:
        group = waiting.queue(LOW, LOW, NORMAL, NORMAL)
        waiting.running.cancel()
        waiting.next.started()
        eventually(lambda: Metrics(narrow)("triton_chat_requests_waiting") == len(group), within=2)
        for stream in reversed(group):  # the last one first
            stream.cancel()
            left = len([stream for stream in group if not stream.is_over])
            eventually(lambda left=left: Metrics(narrow)("triton_chat_requests_waiting") <= left, within=1.2)
    grown = settled(narrow) - waiting.before
    assert grown("triton_chat_requests_total") == 2  # `running` and `next`


def test_who_leaves_at_the_door_makes_way_within_a_second(narrow: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    with backlog(narrow, stub) as waiting:
        (behind,) = waiting.queue(NORMAL)
        waiting.next.cancel()
        assert eventually(lambda: waiting.length == 0, within=2) < 1
        waiting.running.cancel()
        assert behind.wait().error == ""
    grown = settled(narrow) - waiting.before
    assert grown("triton_chat_requests_total") == 2  # the one at the door never ran


def test_who_leaves_the_queue_is_never_run(narrow: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    """Its place in the queue is free only when its turn comes, or its time is over: Triton looks no earlier."""
    with backlog(narrow, stub) as waiting:
        leaving, staying = waiting.queue(NORMAL, NORMAL)
        leaving.cancel()
        assert leaving.wait(1).code == "CANCELLED"
        waiting.running.cancel()
        assert staying.wait().error == waiting.next.wait().error == ""
    grown = settled(narrow) - waiting.before
    assert grown("triton_chat_requests_total") == 3
    assert grown("triton_chat_requests_total", finish_reason="cancelled") == 1


async def test_a_burst_does_not_wait_for_the_batcher(triton: LocalTriton) -> None:
    """Triton's batcher sleeps for half a second unless a request wakes it, and does not wake for one that comes while
    `execute` takes another."""

    async def first_token_s(client: AsyncChatClient) -> float:
        began = time.monotonic()
        async with client.stream("Hi", max_tokens=2, ignore_eos=True) as stream:
            await anext(aiter(stream))
            return time.monotonic() - began

    async with AsyncChatClient(triton.grpc_address) as client:
        bursts = [await asyncio.gather(*(first_token_s(client) for _ in range(5))) for _ in range(40)]
    slow = [max(times) for times in bursts if max(times) > 0.45]
    assert len(slow) <= 2, slow
