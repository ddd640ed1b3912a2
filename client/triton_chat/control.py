"""The calls that ask about the server and its models: health, metadata, the model list."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from triton_chat import tokenizer
from triton_chat.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    ServerStoppingError,
    ServerUnavailableError,
    StreamTimeoutError,
    TritonChatError,
)
from triton_chat.kinds import READY, Kinds
from triton_chat.rpc import Rpc, Steps
from triton_chat.types import ModelInfo, ServerInfo

# Why a model's config is unavailable: unloaded meanwhile, or a server without that extension.
_NO_CONFIG = (ModelNotFoundError, ServerUnavailableError, InvalidRequestError)
_ADAPTERS_S = 1.0
"""Less than anybody waits for the list of models."""


def is_live() -> Steps[bool]:
    """Whether a server process answers; one that cannot be reached is not live."""
    try:
        yield from check_live()
    except (ServerUnavailableError, StreamTimeoutError):
        return False
    return True


def check_live() -> Steps[None]:
    """Raises where no server process says that it is live."""
    if not (yield from Rpc[bool]("ServerLive", pb.ServerLiveRequest(), attrgetter("live"))):
        raise ServerStoppingError("the server says that it is not live")


def is_ready(model: str | None = None) -> Steps[bool]:
    """Whether the server is ready, or the model if one is named."""
    try:
        return (yield from _server_ready() if model is None else _model_ready(model))
    except (ServerUnavailableError, StreamTimeoutError, ModelNotFoundError):
        return False


def server_metadata() -> Steps[ServerInfo]:
    """Name, version and health of the server."""
    read = attrgetter("name", "version", "extensions")
    name, version, extensions = yield from Rpc("ServerMetadata", pb.ServerMetadataRequest(), read)
    live = yield from is_live()
    ready = yield from is_ready()
    return ServerInfo(name, version, tuple(extensions), live, ready)


def models(kinds: Kinds) -> Steps[list[ModelInfo]]:
    """The models in the server's repository. `kinds` are those known; they are added to."""
    entries = yield from Rpc("RepositoryIndex", pb.RepositoryIndexRequest(), attrgetter("models"))
    ready = []
    for entry in entries:
        ready.append(entry.state == READY and (yield from _model_ready(entry.name, entry.version)))
        yield from _learn_kind(entry, kinds)
    yield from _learn_adapters(entries, kinds)
    return [
        ModelInfo(entry.name, entry.version, entry.state, entry.reason, is_ready, kinds[entry], kinds.adapters(entry))
        for entry, is_ready in zip(entries, ready, strict=True)
    ]


def _learn_adapters(entries: Sequence[Any], kinds: Kinds) -> Steps[None]:
    """Asks the tokenizer, which loads nothing for it. Where that does not answer now, the next call asks again."""
    unknown = [entry for entry in entries if kinds.lacks_adapters(entry)]
    if not unknown or not any(entry.state == READY and kinds[entry] == "tokenizer" for entry in entries):
        return
    try:
        found = yield from tokenizer.adapters(_ADAPTERS_S)
    except InvalidRequestError:  # an older server, which has none
        found = {}
    except TritonChatError:
        return
    for entry in unknown:
        kinds.learn_adapters(entry, found)


def _learn_kind(entry: Any, kinds: Kinds) -> Steps[None]:
    if kinds.is_unknown(entry):
        request = pb.ModelConfigRequest(name=entry.name, version=entry.version)
        with suppress(*_NO_CONFIG):
            kinds.learn(entry, (yield from Rpc("ModelConfig", request, attrgetter("config"))))


def _server_ready() -> Rpc[bool]:
    return Rpc("ServerReady", pb.ServerReadyRequest(), attrgetter("ready"))


def _model_ready(name: str, version: str = "") -> Rpc[bool]:
    return Rpc("ModelReady", pb.ModelReadyRequest(name=name, version=version), attrgetter("ready"))
