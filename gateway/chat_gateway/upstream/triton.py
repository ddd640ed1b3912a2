"""Triton as the gateway sees it: the servers, the models they serve, and who waits for them."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from chat_gateway.errors import SHOWN, ApiError, from_client, overloaded, unavailable
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.details import Details
from chat_gateway.upstream.names import addresses
from chat_gateway.upstream.retries import retried
from chat_gateway.upstream.server import Server
from chat_gateway.upstream.servers import Servers
from triton_chat import tokenizer
from triton_chat.channel import Target, parse_url
from triton_chat.client import AsyncChatClient
from triton_chat.errors import TritonChatError
from triton_chat.types import ModelInfo, Timeouts, TokenizerInfo

T = TypeVar("T")
Kind = Literal["chat", "embeddings"]
Lookup = Callable[[], Awaitable[Sequence[Target]]]

_CONNECT_S = 2.0
_CONTROL_S = 5.0
_LONGEST_RETRY_S = 60

NO_CHAT_MODEL = "Triton has no chat model that is ready"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that callers may use."""

    id: str
    target: str
    """Triton's name; another one if `id` is an alias."""
    kind: Kind


class Upstream:
    """The servers, for the life of one app. Belongs to one event loop."""

    def __init__(
        self, settings: GatewaySettings, client: AsyncChatClient | None = None, *, lookup: Lookup | None = None
    ) -> None:
        """Connects to nothing yet.

        Args:
            settings: where Triton is, the time limits, the aliases.
            client: of the only server, in place of those at the address of the settings.
            lookup: where the servers are, if not where the system's resolver says.
        """
        self.began = int(time.time())
        """Unix time; stands for when a model was made, which nobody knows."""
        target = parse_url(settings.triton_url)
        self.servers = (
            Servers(
                lookup or partial(addresses, target), partial(_client, settings=settings), settings.max_queue_seconds
            )
            if client is None
            else Servers(partial(_only, target), lambda _: client, settings.max_queue_seconds)
        )
        self._aliases = settings.aliases
        self._retry_after = settings.retry_after
        self._first_token_timeout = settings.first_token_timeout
        self._details = Details(self._tokenizer_info)

    async def resolve(self, name: str, kind: Kind = "chat") -> str:
        """Triton's name of a model.

        A model that was ready until recently is taken at once: the request may wait for a server.

        Raises:
            ApiError: 404 no such model of this kind; 503 it is not ready, or Triton cannot be asked.
        """
        target = self._aliases.get(name, name)
        model = self.servers.recent(target)
        if model is not None and model.kind == kind:
            return target
        model = (await self._fresh()).get(target)
        if model is None or model.kind not in ({kind} if model.ready else {kind, "other"}):
            sentence = f"there is no model {name[:SHOWN]!r} for {kind}; GET /v1/models lists the models"
            raise ApiError(404, sentence, param="model", code="model_not_found")
        if not model.ready:
            raise unavailable(f"the model {name[:SHOWN]!r} is not ready; try again later", self._retry_after)
        return target

    async def resolve_chat(self, name: str | None) -> str:
        """`resolve` for a chat model that need not be named where there is only one.

        Raises:
            ApiError: as `resolve` does; 400 no name, and several models.
        """
        if name is not None:
            return await self.resolve(name)
        targets = sorted({served.target for served in await self.models() if served.kind == "chat"})
        if not targets:
            raise unavailable(NO_CHAT_MODEL, self._retry_after)
        if len(targets) > 1:
            shown = ", ".join(targets)[:SHOWN]
            sentence = f"model: is required, because there are {len(targets)} chat models: {shown}"
            raise ApiError(400, sentence, param="model", code="missing_required_parameter")
        return targets[0]

    async def models(self) -> list[ServedModel]:
        """The models that are ready, aliases included, by name.

        Raises:
            ApiError: Triton cannot be asked.
        """
        models = await self._fresh()
        targets = {name: name for name in models} | self._aliases
        return [
            ServedModel(name, target, model.kind)
            for name, target in sorted(targets.items())
            if (model := models.get(target)) and model.ready and (model.kind == "chat" or model.kind == "embeddings")
        ]

    async def details(self, model: ServedModel) -> TokenizerInfo | None:
        """What the tokenizer says of a chat model; None for others, and where it says nothing."""
        return await self._details.of(model.target) if model.kind == "chat" else None

    async def needed_details(self, target: str) -> TokenizerInfo:
        """`details` for a request that depends on them: the tokenizer may take as long as a first token.

        Raises:
            TritonChatError: how the tokenizer failed.
        """
        return await self._details.needed(target)

    async def ask(
        self,
        model: str,
        ask: Callable[[Server], Awaitable[T]],
        request_id: str = "",
        *,
        unless: Callable[[], bool] = bool,
    ) -> T:
        """What a server answers; see `retried`.

        Raises:
            TritonChatError: how the last try failed.
        """
        return await retried(self.servers, model, ask, request_id, unless=unless)

    async def ask_tokenizer(self, ask: Callable[[AsyncChatClient], Awaitable[T]], request_id: str = "") -> T:
        """`ask` for the model that has the tokenizers of all chat models."""
        return await self.ask(tokenizer.NAME, lambda server: ask(server.client), request_id)

    def admit(self, model: str) -> None:
        """Raises ApiError (429) if a request would wait for its first token longer than the settings allow."""
        excess_s = self.servers.excess_s(model)
        if excess_s > 0:
            retry_after = max(self._retry_after, min(math.ceil(excess_s), _LONGEST_RETRY_S))
            raise overloaded("too many requests are waiting for this model; try again later", retry_after)

    async def close(self) -> None:
        """Close the connections; what is still running is cancelled."""
        await self.servers.close()

    async def _tokenizer_info(self, target: str) -> TokenizerInfo:
        return await self.ask_tokenizer(lambda client: client.tokenizer_info(target, timeout=self._first_token_timeout))

    async def _fresh(self) -> Mapping[str, ModelInfo]:
        try:
            return await self.servers.models()
        except TritonChatError as error:
            raise from_client(error, self._retry_after) from error


async def _only(target: Target) -> Sequence[Target]:
    return (target,)


def _client(target: Target, settings: GatewaySettings) -> AsyncChatClient:
    """Of one server."""
    timeouts = Timeouts(
        connect=_CONNECT_S,
        first_token=settings.first_token_timeout,
        idle=settings.token_timeout,
        total=settings.request_timeout,
        control=_CONTROL_S,
        batch=settings.request_timeout,
    )
    return AsyncChatClient(target, timeouts=timeouts)
