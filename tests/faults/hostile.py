"""Clients that crash, leave, send half of a request, or do not read."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.faults.kept_stack import KeptStack
from tests.integration.calls import chat, request

LONG = {"max_tokens": 600, "ignore_eos": True}


class Crowd:
    """Does one bad thing after another; what is to stay open does so until the end of the block."""

    def __init__(self, stack: KeptStack, seed: int) -> None:
        self._stack = stack
        self._dice = random.Random(seed)
        self._held = ExitStack()
        self.count = 0

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def act(self) -> None:
        """Whichever the dice say."""
        self._dice.choice(ACTIONS)(self)
        self.count += 1

    def leave_a_grpc_stream(self) -> None:
        with grpc.insecure_channel(self._stack.triton.grpc_address) as channel:
            asked = request(messages=chat(f"Who are you? {self.count}"), sampling_parameters=LONG)
            call = GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([asked]), timeout=60)
            next(call)
            call.cancel()

    def abandon_a_whole_answer(self) -> None:
        with grpc.insecure_channel(self._stack.triton.grpc_address) as channel:
            asked = request("chat_unary", messages=chat("Who are you?"), sampling_parameters=LONG)
            GRPCInferenceServiceStub(channel).ModelInfer.future(asked, timeout=60).cancel()

    def crash_in_an_answer(self) -> None:
        """Reset, as by a process that is killed."""
        with self._connection() as connection:
            connection.sendall(_post({"stream": True, **LONG}))
            connection.recv(1000)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def crash_in_a_body(self) -> None:
        with self._connection() as connection:
            connection.sendall(_post({"stream": True, **LONG})[:-20])

    def hold_half_a_head(self) -> None:
        connection = self._held.enter_context(self._connection())
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Slow: ")

    def hold_half_a_body(self) -> None:
        connection = self._held.enter_context(self._connection())
        connection.sendall(_post({**LONG})[:-20])

    def hold_an_answer_unread(self) -> None:
        connection = self._held.enter_context(self._connection())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(_post({"stream": True, **LONG, "logprobs": True, "top_logprobs": 20}))

    def speak_another_language(self) -> None:
        with self._connection() as connection:
            connection.sendall(self._dice.randbytes(self._dice.randrange(1, 4000)))

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        address = urlsplit(self._stack.gateway.url)
        assert address.hostname
        assert address.port
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            yield connection


ACTIONS: list[Callable[[Crowd], None]] = [
    Crowd.leave_a_grpc_stream,
    Crowd.abandon_a_whole_answer,
    Crowd.crash_in_an_answer,
    Crowd.crash_in_a_body,
    Crowd.hold_half_a_head,
    Crowd.hold_half_a_body,
    Crowd.hold_an_answer_unread,
    Crowd.speak_another_language,
]


def _post(fields: dict[str, object]) -> bytes:
    body = json.dumps({"model": "chat", "messages": chat("Who are you?"), **fields}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
