"""Callers of the gateway: the `openai` package, and one inside the process that can leave at any time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any

from openai import OpenAI
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message

from tests.gateway.apps import wait_until
from tests.gateway.fakes import WAIT_S


def openai_over(gateway: TestClient) -> OpenAI:
    return OpenAI(base_url="http://testserver/v1", api_key="none", http_client=gateway, max_retries=0)


def events_of(text: str) -> list[Any]:
    """The JSON of each event of a stream, and its `[DONE]` as it is."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


class Caller:
    """One POST of JSON. Leaving the `async with` block hangs up."""

    def __init__(self, app: ASGIApp, path: str = "/", body: object = None) -> None:
        self.status: int | None = None
        self._app = app
        self._path = path
        self._body = json.dumps(body).encode()
        self._sent = False
        self._gone = asyncio.Event()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def __aenter__(self) -> Caller:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        await asyncio.wait_for(self._task, WAIT_S)

    def leave(self) -> None:
        self._gone.set()

    async def reaches(self, condition: Callable[[], object]) -> None:
        """Returns when `condition()` is true."""
        await asyncio.to_thread(wait_until, condition)

    async def chunk(self) -> bytes | None:
        """The next part of the body; None after the last."""
        return await asyncio.wait_for(self._chunks.get(), WAIT_S)

    async def text(self) -> str:
        """What is left of the body."""
        parts = []
        while (part := await self.chunk()) is not None:
            parts.append(part)
        return b"".join(parts).decode()

    async def _run(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        try:
            await self._app(scope, self._receive, self._send)
        finally:
            self._chunks.put_nowait(None)

    async def _receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["body"]:
            self._chunks.put_nowait(message["body"])
