"""Gateways for tests: in the process, and behind a real uvicorn."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from opentelemetry.sdk.trace.export import SpanExporter

from chat_gateway.app import create_app
from chat_gateway.http.listener import Server
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.triton import Upstream
from tests.gateway.fakes import WAIT_S, FakeClient


def app_for(fake: FakeClient, *, span_exporter: SpanExporter | None = None, **settings: Any) -> FastAPI:
    """A gateway in front of a fake; `settings` are fields of `GatewaySettings`."""
    resolved = GatewaySettings(**settings)
    return create_app(resolved, upstream=Upstream(resolved, fake), span_exporter=span_exporter)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of an app behind uvicorn, set up as the command does it, on a free port."""
    server = Server(app, app.state.settings.model_copy(update={"port": 0}))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Any) -> None:
    """Returns when `condition()` is true; fails if that takes too long."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A connection with little room for what is not read."""
    address = urlsplit(url)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(WAIT_S)
        raw.connect((address.hostname, address.port))
        yield raw
