"""The SDK: `ChatClient` for threads, `AsyncChatClient` for asyncio. Both offer the same calls.

    with ChatClient("localhost:8001") as client:
        for event in client.stream("Why is the sky blue?", max_tokens=64):
            print(event.text, end="")

A call is described once, as data (`chat`, `control`, `embeddings`, `tokenizer`, in the terms of `rpc`), and sent by
either client's sender (`senders`).

Source: KServe predict protocol v2 over gRPC, by the stub that tritonclient carries.
"""

from __future__ import annotations

from triton_chat.async_client import AsyncChatClient
from triton_chat.sync_client import ChatClient

__all__ = ["AsyncChatClient", "ChatClient"]
