"""Callers at each door, in the middle of an answer when something fails."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.faults.kept_stack import KeptStack
from tests.integration.calls import Metrics, chat, eventually, request
from triton_chat import ChatClient

QUESTION = chat("What is continuous batching?")
TOKENS = 4000
"""More than the context has room for: it goes on until the context ends, seconds after any fault."""
LONG = {"max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
CALL_S = 60.0
KNOWN_STEPS = 100
"""Before so many, an engine waits longer for a step."""


class Caller:
    """Reads an answer on a thread of its own, and notes how and when it ends."""

    def __init__(self, name: str, pieces: Callable[[], Iterator[object]]) -> None:
        self.name = name
        self.error: BaseException | None = None
        self.ended_at = 0.0
        self._pieces = pieces
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def begun(self, within: float = 30.0) -> Caller:
        """Once the first piece has come; a caller who gets the answer in one piece counts once it has asked."""
        assert self._begun.wait(within), f"{self.name}: nothing came"
        assert self.ended_at == 0.0, f"{self.name} ended at once: {self.error}"
        return self

    def seconds_to_error(self, since: float, within: float) -> float:
        """It ends within that time, and with an error."""
        self._thread.join(max(0.0, since + within - time.monotonic()))
        assert not self._thread.is_alive(), f"{self.name} still waits after {within:.0f} s"
        assert self.error is not None, f"{self.name} ended as if nothing had happened"
        return self.ended_at - since

    def finished(self, within: float) -> None:
        """It ends within that time, and well."""
        self._thread.join(within)
        assert not self._thread.is_alive(), f"{self.name} still waits"
        assert self.error is None, self.error

    def _read(self) -> None:
        try:
            for _ in self._pieces():
                self._begun.set()
        except BaseException as error:  # noqa: BLE001 - whatever the caller gets is what is looked at
            self.error = error
        self.ended_at = time.monotonic()
        self._begun.set()


def at_every_door(stack: KeptStack) -> list[Caller]:
    """One in the middle of a long answer at each door that we own, and at Triton's own."""
    grpc_address, gateway = stack.triton.grpc_address, stack.gateway
    callers = [
        Caller("openai", lambda: openai_stream(gateway.openai_url)),
        Caller("openai, whole", lambda: openai_whole(gateway.openai_url)),
        Caller("sdk", lambda: sdk_stream(grpc_address)),
        Caller("grpc", lambda: grpc_stream(grpc_address)),
        Caller("chat_unary", lambda: grpc_whole(grpc_address)),
        Caller("generate_stream", lambda: http_stream(stack.triton.http_url)),
    ]
    begun = [caller.begun() for caller in callers]
    # Of those who get the whole answer at once, too, some tokens have been made, and the engine knows its own pace.
    eventually(lambda: _are_under_way(Metrics(stack.triton), len(callers)), CALL_S)
    return begun


def _are_under_way(metrics: Metrics, callers: int) -> bool:
    steps = metrics("triton_chat_engine_steps_total")
    return metrics("triton_chat_requests_running") == callers and steps > KNOWN_STEPS


def openai_stream(url: str) -> Iterator[ChatCompletionChunk]:
    with OpenAI(base_url=url, api_key="-", max_retries=0, timeout=CALL_S) as client:
        yield from client.chat.completions.create(**openai_request(), stream=True)


def openai_whole(url: str) -> Iterator[object]:
    with OpenAI(base_url=url, api_key="-", max_retries=0, timeout=CALL_S) as client:
        yield None
        yield client.chat.completions.create(**openai_request())


def openai_request() -> dict[str, Any]:
    return {
        "model": "chat", "messages": QUESTION, "max_tokens": 2000, "temperature": 0, "extra_body": {"ignore_eos": True}
    }  # fmt: skip


def sdk_stream(address: str) -> Iterator[object]:
    with ChatClient(address) as client:
        yield from client.stream(QUESTION, max_tokens=2000, ignore_eos=True, temperature=0.0)


def grpc_stream(address: str) -> Iterator[object]:
    with grpc.insecure_channel(address) as channel:
        asked = request(messages=QUESTION, sampling_parameters={**LONG, "max_tokens": 2000})
        for response in GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([asked]), timeout=CALL_S):
            if response.error_message:
                raise RuntimeError(response.error_message)
            yield response


def grpc_whole(address: str) -> Iterator[object]:
    with grpc.insecure_channel(address) as channel:
        asked: pb.ModelInferRequest = request(
            "chat_unary", messages=QUESTION, sampling_parameters={**LONG, "max_tokens": 2000}
        )
        yield None
        yield GRPCInferenceServiceStub(channel).ModelInfer(asked, timeout=CALL_S)


def http_stream(url: str) -> Iterator[object]:
    body = {"messages": json.dumps(QUESTION), "sampling_parameters": json.dumps({**LONG, "max_tokens": 2000})}
    asked = urllib.request.Request(f"{url}/v2/models/chat/generate_stream", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=CALL_S) as answer:
        for line in answer:
            if b'"error"' in line:
                raise RuntimeError(line.decode())
            yield line
        raise ConnectionError("the stream ended")  # this door marks no end; none of these comes to it


def short_answer(stack: KeptStack) -> str:
    """What the stack says to the question, greedily."""
    with OpenAI(base_url=stack.gateway.openai_url, api_key="-", max_retries=0, timeout=CALL_S) as client:
        answer = client.chat.completions.create(model="chat", messages=QUESTION, max_tokens=24, temperature=0)
    return answer.choices[0].message.content or ""
