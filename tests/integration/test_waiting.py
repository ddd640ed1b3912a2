"""Waiting is not death: streams that wait say that they live, so no idle limit ends them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from local.triton import LocalTriton
from tests.integration.calls import Metrics, eventually, settled
from tests.integration.servers import REPOSITORY, ServerFactory, changed_copy
from triton_chat import ChatClient, ChatEvent, SamplingParams, Timeouts

pytestmark = pytest.mark.alone

STREAMS, TOKENS, CACHE = 24, 700, 4096
IDLE_S = 1.5
SOONER = """

from chat_engine.service import delivery

delivery._SILENCE_SECONDS = 0.3
"""
"""What waits says so more often than every 5 seconds, so that idle limits can be short too."""
ENGINE = {"threads": 1, "max_sequences": STREAMS, "max_model_len": 1024, "kv_cache_tokens": CACHE}
FOREVER = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)


@dataclass
class Read:
    """What one stream has got."""

    last: ChatEvent = field(default_factory=lambda: ChatEvent(""))
    text: str = ""
    silence_s: float = 0.0
    """The longest time without text."""
    signs: list[ChatEvent] = field(default_factory=list)


@pytest.fixture(scope="module")
def server(able_to_serve: None, engine_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    folder: Path = tmp_path_factory.mktemp("waiting")
    changed_copy(REPOSITORY, folder / "repository", {"chat": {}})
    with (folder / "repository" / "chat" / "1" / "model.py").open("a") as model:
        model.write(SOONER)
    servers = ServerFactory(folder, engine_name)
    try:
        yield servers(ENGINE, repository=folder / "repository", models=("chat",))
    finally:
        servers.stop_all()


@pytest.fixture
def client(server: LocalTriton) -> Iterator[ChatClient]:
    with ChatClient(server.grpc_address, timeouts=Timeouts(idle=IDLE_S)) as client:
        yield client


def read(client: ChatClient, number: int) -> Read:
    found, since = Read(), time.monotonic()
    with client.stream(prompt=f"Number {number}", sampling=FOREVER) as stream:
        for event in stream:
            found.last, found.text = event, found.text + event.text
            if event.text:
                found.silence_s, since = max(found.silence_s, time.monotonic() - since), time.monotonic()
            elif not event.finish_reason:
                found.signs.append(event)
    return found


def test_streams_that_are_put_back_for_long_outlive_a_short_idle_limit(server: LocalTriton, client: ChatClient) -> None:
    before = settled(server)
    with ThreadPoolExecutor(STREAMS) as pool:
        together = list(pool.map(lambda number: read(client, number), range(STREAMS)))
    assert (settled(server) - before)("triton_chat_preemptions_total") > 0
    assert [(one.last.finish_reason, one.last.num_output_tokens) for one in together] == [("length", TOKENS)] * STREAMS
    assert max(one.silence_s for one in together) > IDLE_S, "nobody had to wait, so this proves nothing"
    assert read(client, 0).text == together[0].text


def test_who_is_in_hand_counts_as_waiting_and_says_that_it_lives(server: LocalTriton, client: ChatClient) -> None:
    with ThreadPoolExecutor(STREAMS + 1) as pool:
        first = [pool.submit(read, client, number) for number in range(STREAMS)]
        eventually(lambda: inside(server) == STREAMS, within=10)
        last = pool.submit(read, client, STREAMS)
        eventually(lambda: inside(server) == STREAMS + 1, within=10)
        for future in first:
            future.result()
    found = last.result()
    signs = {sign.num_input_tokens for sign in found.signs if sign.is_waiting}
    assert signs == {found.last.num_input_tokens}


def inside(server: LocalTriton) -> float:
    metrics = Metrics(server)
    return metrics("triton_chat_requests_running") + metrics("triton_chat_requests_waiting")
