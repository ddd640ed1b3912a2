"""The calls that chat: an answer as a stream of events, and answers to a batch."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

from triton_chat import wire
from triton_chat.collector import Collector
from triton_chat.errors import InvalidRequestError
from triton_chat.rpc import Rpc, Steps, StreamRpc
from triton_chat.types import (
    Call,
    CallOptions,
    ChatEvent,
    ChatOptions,
    ChatRequest,
    ChatResult,
    Messages,
    SamplingParams,
    Timeouts,
)

Conversations = Sequence[Messages | ChatRequest]
"""A row that is a `ChatRequest` has parameters of its own, and takes none of the call's."""


def stream(messages: Messages | None, options: CallOptions, limits: Timeouts) -> StreamRpc:
    """One answer as it is made; `limits` hold where the call has none of its own.

    Raises:
        TypeError: an unknown keyword.
        InvalidRequestError: what is wrong can be seen here already.
    """
    call = Call.of(messages, options)
    call = call if call.request_id else replace(call, request_id=_new_id())
    return StreamRpc(
        wire.infer_request(call),
        call.headers,
        timeout=limits.total if call.timeout is None else call.timeout,
        first_token_s=limits.first_token,
        idle_s=limits.idle if call.idle_timeout is None else call.idle_timeout,
    )


def batch(
    conversations: Conversations | None,
    prompts: Sequence[str] | None,
    model: str,
    sampling: SamplingParams | None,
    timeout: float,
    options: ChatOptions,
    adapter: str | None = None,
) -> Steps[list[ChatResult]]:
    """Answers to conversations and prompts, in one request.

    Raises:
        TypeError: an unknown keyword.
        InvalidRequestError: `options` has what no row would take.
    """
    _check_taken(conversations or (), prompts or (), options)
    sampling = sampling or SamplingParams()
    rows = [
        row
        if isinstance(row, ChatRequest)
        else ChatRequest(messages=row, sampling=sampling, adapter=adapter, **options)
        for row in conversations or ()
    ]
    rows += [ChatRequest(prompt=prompt, sampling=sampling, adapter=adapter) for prompt in prompts or ()]
    first = rows[0] if rows else ChatRequest(prompt="")
    request = wire.infer_request(Call(request=first, model=model, request_id=_new_id()), rows)
    started = time.perf_counter()
    events = yield from Rpc("ModelInfer", request, wire.decode_rows, timeout)
    duration_s = time.perf_counter() - started
    return [_result(event, duration_s) for event in events]


def _check_taken(conversations: Conversations, prompts: Sequence[str], options: ChatOptions) -> None:
    """What is about messages is not dropped silently where no row has any, or each has parameters of its own."""
    given = [name for name, value in options.items() if value is not None]
    if given and (conversations or prompts) and all(isinstance(row, ChatRequest) for row in conversations):
        raise InvalidRequestError(
            "only for messages; raw prompts are taken as they are, and a ChatRequest has parameters of its own",
            field=given[0],
        )


def _result(event: ChatEvent, duration_s: float) -> ChatResult:
    collector = Collector()
    collector.add(event)
    return replace(collector.result(), ttft_s=None, duration_s=duration_s)


def _new_id() -> str:
    return uuid.uuid4().hex
