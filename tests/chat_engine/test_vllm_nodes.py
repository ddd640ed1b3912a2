"""What a machine does that computes for another, as far as it needs no vLLM."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from chat_engine.config import EngineConfig, parse_config
from chat_engine.errors import ConfigError
from chat_engine.vllm.nodes import Stop, _connected, _first_to_end, node_arguments
from tests.chat_engine.builders import WAIT


def settings(**vllm: object) -> EngineConfig:
    return parse_config({"model": "a/b", "engine": "vllm", "vllm": vllm})


def test_only_rank_and_leader_are_other_than_the_leader_has() -> None:
    assert node_arguments(settings(nnodes=3), "leader", 2) == {"node_rank": 2, "master_addr": "leader"}


@pytest.mark.parametrize(
    ("config", "rank", "words"),
    [
        (parse_config({"model": "a/b"}), 1, "engine: must be vllm .*got 'native'"),
        (settings(), 1, r"vllm.nnodes: must be the number of machines, at least 2 \(got 1\)"),
        (settings(nnodes="2"), 1, "vllm.nnodes: .*got '2'"),
        (settings(nnodes=2), 2, r"rank: must be from 1 to 1, as vllm.nnodes is 2 \(got 2\)"),
        (settings(nnodes=2), 0, "rank: .*got 0"),
    ],
)
def test_what_cannot_be_is_refused(config: EngineConfig, rank: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        node_arguments(config, "leader", rank)


def test_it_waits_for_its_leader_and_sees_it_go() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))  # nobody listens yet
    lines: list[socket.socket] = []
    waiting = threading.Thread(target=lambda: lines.append(_connected(*listener.getsockname())))
    waiting.start()
    listener.listen()
    accepted, _ = listener.accept()
    waiting.join(WAIT)
    accepted.sendall(b"a word is not an end")
    accepted.close()
    with lines[0]:
        assert _first_to_end([], lines[0]) == "the leader"
    listener.close()


def test_it_sees_a_worker_end() -> None:
    here, there = socket.socketpair()
    sentinel, writer = os.pipe()
    os.close(writer)
    with here, there:
        assert _first_to_end([sentinel], here) == "a worker"
    os.close(sentinel)


def test_a_signal_ends_what_has_not_begun_and_is_noted_later() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        stop = Stop()
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 0
        stop = Stop()
        stop.stay()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
