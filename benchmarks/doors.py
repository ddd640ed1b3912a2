"""The ways to a contender that is a server. No torch here: these run in processes that only ask."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import httpx2

from benchmarks.answers import Answer, Reader, RefusedError, WrongAnswerError, check
from benchmarks.jobs import Job
from benchmarks.loads import Ask
from triton_chat import AsyncChatClient


class Door(ABC):
    """Can be sent to another process, and opened there."""

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[Ask]: ...


@dataclass(frozen=True)
class HttpDoor(Door):
    """A stream of OpenAI's `/v1/completions`, by a bare HTTP client, so that no client library is measured.

    Attributes:
        url: of the server.
        model: as the server calls it.
        as_text: for a server that takes no token ids.
        more: fields of the request beside those that all get.
    """

    url: str
    model: str = "chat"
    as_text: bool = False
    more: Mapping[str, object] = field(default_factory=lambda: {"ignore_eos": True})

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"Accept-Encoding": "identity"}
        async with httpx2.AsyncClient(base_url=self.url, limits=limits, timeout=600, headers=headers) as client:

            async def ask(job: Job, answer: Answer) -> None:
                reader = Reader(answer)
                async with client.stream("POST", "/v1/completions", json=self.body(job)) as response:
                    if response.is_error:
                        refused = response.status_code in (429, 503)
                        kind = RefusedError if refused else WrongAnswerError
                        raise kind(f"{response.status_code}: {(await response.aread()).decode()}")
                    async for chunk in response.aiter_bytes():
                        reader.feed(time.monotonic(), chunk)
                reader.end(len(job.prompt_ids))

            yield ask

    def body(self, job: Job) -> dict[str, object]:
        return {
            "model": self.model, "prompt": job.prompt if self.as_text else job.prompt_ids, "temperature": 0,
            "max_tokens": job.max_tokens, "stream": True, "stream_options": {"include_usage": True}, **self.more,
        }  # fmt: skip


@dataclass(frozen=True)
class GrpcDoor(Door):
    """Triton's gRPC, by the SDK: one stream a request."""

    address: str

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        async with AsyncChatClient(self.address) as client:

            async def ask(job: Job, answer: Answer) -> None:
                stream = client.stream(
                    prompt_token_ids=job.prompt_ids,
                    max_tokens=job.max_tokens,
                    temperature=0,
                    ignore_eos=True,
                    idle_timeout=600,
                )
                counted = (0, 0)
                async with stream:
                    async for event in stream:
                        if event.num_output_tokens > counted[1]:  # a waiting stream says now and then that it lives
                            answer.times.append(time.monotonic())
                        counted = (event.num_input_tokens, event.num_output_tokens)
                check(answer, len(job.prompt_ids), counted)

            yield ask
