"""A process that dies or gets stuck: callers hear of it within ten seconds, and soon everything is back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.faults.callers import QUESTION, Caller, at_every_door, grpc_stream, openai_stream, short_answer
from tests.faults.kept_stack import KeptStack, status_of
from tests.integration.calls import eventually, stub_of

WITHIN_S = 10.0
SHORT = {"model": "chat", "messages": QUESTION, "max_tokens": 1}
MODELS = ("chat", "chat_unary", "embeddings", "tokenizer", "vllm_model")

Measured = dict[str, float]
Fault = Callable[[KeptStack], None]


def of_stub(model: str, number: signal.Signals) -> Fault:
    return lambda stack: os.kill(stub_of(stack.triton, model), number)


def of_server(number: signal.Signals) -> Fault:
    return lambda stack: os.kill(stack.triton.server_pid, number)


def in_a_step(what: str) -> Fault:
    return lambda stack: _tell(stack, what)


FAULTS = {
    **{
        f"{model} {number.name}": of_stub(model, number)
        for model in MODELS
        for number in (signal.SIGKILL, signal.SIGSTOP)
    },
    "chat SIGSEGV": of_stub("chat", signal.SIGSEGV),
    "tritonserver SIGKILL": of_server(signal.SIGKILL),
    "tritonserver SIGSEGV": of_server(signal.SIGSEGV),
    "tritonserver SIGSTOP": of_server(signal.SIGSTOP),
    "a step sleeps": in_a_step("sleep"),
    "a step spins": in_a_step("spin"),
    "every step fails": in_a_step("fail"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_everybody_is_told_and_it_comes_back(stack: KeptStack, measured: Measured, name: str) -> None:
    said = short_answer(stack)
    callers = at_every_door(stack)
    lines, began = len(stack.said), time.monotonic()
    FAULTS[name](stack)
    try:
        not_ready = eventually(lambda: not stack.is_ready(), WITHIN_S)
        newcomer = status_of(f"{stack.gateway.url}/v1/chat/completions", SHORT, WITHIN_S)
        measured["error"] = max(caller.seconds_to_error(began, WITHIN_S) for caller in callers)
    finally:
        stack.fault.unlink(missing_ok=True)
    measured["not ready"] = not_ready
    assert newcomer in (200, 503), "it is refused, or has waited for the server that is back"
    stack.wait_until_whole()
    measured["back"] = time.monotonic() - began
    measured["load"] = stack.triton.seconds
    assert measured["back"] <= measured["load"] + WITHIN_S
    assert short_answer(stack) == said
    assert stack.said[lines].startswith("tritonserver died (exit code "), stack.said[lines:]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_the_gateway_comes_back_and_the_others_do_not_notice(
    stack: KeptStack, measured: Measured, number: signal.Signals
) -> None:
    said = short_answer(stack)
    bystander = Caller("grpc", lambda: grpc_stream(stack.triton.grpc_address)).begun()
    caller = Caller("openai", lambda: openai_stream(stack.gateway.openai_url)).begun()
    began = time.monotonic()
    os.kill(stack.gateway.pid, number)
    measured["error"] = caller.seconds_to_error(began, WITHIN_S)
    stack.wait_until_whole()
    measured["back"] = time.monotonic() - began
    assert measured["back"] <= stack.gateway.seconds + WITHIN_S
    assert bystander.error is None
    assert short_answer(stack) == said


def test_the_page_comes_back(stack: KeptStack, measured: Measured) -> None:
    caller = Caller("openai", lambda: openai_stream(stack.gateway.openai_url)).begun()
    began = time.monotonic()
    os.kill(stack.page.pid, signal.SIGKILL)
    eventually(lambda: not stack.is_whole(), WITHIN_S)
    stack.wait_until_whole()
    measured["back"] = time.monotonic() - began
    assert measured["back"] <= stack.page.seconds + WITHIN_S
    assert caller.error is None


def _tell(stack: KeptStack, what: str) -> None:
    fresh = stack.fault.with_suffix(".new")
    fresh.write_text(what)
    fresh.replace(stack.fault)
