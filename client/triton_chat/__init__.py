"""Client of triton-chat: an SDK over tritonclient's gRPC, and the `triton-chat` command.

Names are loaded on first use, so that the command line starts without gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from triton_chat.client import AsyncChatClient, ChatClient
    from triton_chat.collector import Collector
    from triton_chat.embeddings import EmbeddingResult
    from triton_chat.errors import (
        ContextLengthError,
        EngineError,
        InvalidRequestError,
        ModelNotFoundError,
        OverloadedError,
        RequestCancelledError,
        ServerSilentError,
        ServerStoppingError,
        ServerUnavailableError,
        ServerUnreachedError,
        StreamTimeoutError,
        TritonChatError,
    )
    from triton_chat.rounds import ToolRun
    from triton_chat.streams import AsyncChatStream, ChatStream
    from triton_chat.tools import tool_of
    from triton_chat.types import (
        AdapterInfo,
        ChatEvent,
        ChatRequest,
        ChatResult,
        ModelInfo,
        SamplingParams,
        Timeouts,
        TokenizerInfo,
        TokenLogprob,
        Tokens,
        ToolCall,
        ToolCallDelta,
    )

__all__ = [
    "AdapterInfo",
    "AsyncChatClient",
    "AsyncChatStream",
    "ChatClient",
    "ChatEvent",
    "ChatRequest",
    "ChatResult",
    "ChatStream",
    "Collector",
    "ContextLengthError",
    "EmbeddingResult",
    "EngineError",
    "InvalidRequestError",
    "ModelInfo",
    "ModelNotFoundError",
    "OverloadedError",
    "RequestCancelledError",
    "SamplingParams",
    "ServerSilentError",
    "ServerStoppingError",
    "ServerUnavailableError",
    "ServerUnreachedError",
    "StreamTimeoutError",
    "Timeouts",
    "TokenLogprob",
    "TokenizerInfo",
    "Tokens",
    "ToolCall",
    "ToolCallDelta",
    "ToolRun",
    "TritonChatError",
    "tool_of",
]

_MODULES = ("errors", "types", "collector", "streams", "embeddings", "client", "rounds", "tools")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        metadata = import_module("importlib.metadata")
        try:
            return metadata.version("triton-chat")
        except metadata.PackageNotFoundError:
            return "0+unknown"
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f"triton_chat.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
