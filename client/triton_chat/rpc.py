"""A call to the server as data: which RPC, with what request, for how long, and how its response is read.

A call of one RPC is an `Rpc`. A call of several is a generator of them, which gets what each came to:

    def names() -> Steps[list[str]]:
        index = yield from Rpc("RepositoryIndex", pb.RepositoryIndexRequest(), lambda response: response.models)
        return [entry.name for entry in index]

Nothing here waits or connects: `triton_chat.senders` sends any call, for threads and for asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb

from triton_chat.errors import TritonChatError, from_status

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Method = Literal[
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelConfig", "RepositoryIndex", "ModelInfer"
]
"""Those of `inference.GRPCInferenceService` that have one request and one response."""


@dataclass(frozen=True)
class Rpc(Generic[T]):
    """One request and its one response."""

    method: Method
    request: Any
    read: Callable[[Any], T]
    """What the response comes to."""
    timeout: float | None = None
    """Seconds; None for the client's limit for health, metadata and the like."""

    def __iter__(self) -> Steps[T]:
        """Asks whoever iterates for the response."""
        return self.read((yield self))


Steps = Generator[Rpc[Any], Any, T]
"""RPCs one after the other, and what they come to. It is sent each response, or thrown the error that came instead."""


class Rpcs(Protocol[T_co]):
    """One RPC, or the steps of several."""

    def __iter__(self) -> Steps[T_co]: ...


@dataclass(frozen=True, slots=True)
class StreamRpc:
    """One request whose answer comes in events: `ModelStreamInfer`. `triton_chat.streams` reads them."""

    request: pb.ModelInferRequest
    headers: Mapping[str, str]
    timeout: float | None
    """Seconds for the whole answer; None for as long as it takes."""
    first_token_s: float
    idle_s: float
    """How long the reader may be kept waiting, see `WaitLimit`."""


def failure(error: grpc.RpcError, address: str) -> TritonChatError:
    """gRPC's error as one of this package's; `address` is where the server should be."""
    return from_status(error.code().name, error.details() or "", address)
