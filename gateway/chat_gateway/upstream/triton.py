"""Triton as the gateway sees it: the servers, the models they serve, and who waits for them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Literal, TypeVar

from chat_gateway.errors import SHOWN, ApiError, from_client, overloaded, unavailable
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.details import Details
from chat_gateway.upstream.names import addresses
from chat_gateway.upstream.retries import retried
from chat_gateway.upstream.server import Server, names
from chat_gateway.upstream.servers import Servers
from triton_chat import tokenizer
from triton_chat.channel import Target, parse_url
from triton_chat.client import AsyncChatClient
from triton_chat.errors import TritonChatError
from triton_chat.types import AdapterInfo, ModelInfo, Timeouts, TokenizerInfo

T = TypeVar("T")
Kind = Literal["chat", "embeddings"]
Lookup = Callable[[], Awaitable[Sequence[Target]]]

_CONNECT_S = 2.0
_CONTROL_S = 5.0
_LONGEST_RETRY_S = 60

_log = logging.getLogger(__name__)

NO_CHAT_MODEL = "Triton has no chat model that is ready"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that callers may use."""

    id: str
    target: str
    """Triton's name of the model; another one if `id` is an alias or an adapter."""
    kind: Kind
    adapter: AdapterInfo | None = None
    """Of `target`, for an adapter."""


@dataclass(frozen=True, slots=True)
class Found:
    """What Triton is asked for: one of its models, and the adapter of it, if any."""

    model: str
    adapter: str | None = None


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
        self._hidden: set[str] = set()
        """Adapters that were warned of."""
        self._details = Details(self._tokenizer_info)

    async def resolve(self, name: str, kind: Kind = "chat") -> str:
        """Triton's name of a model, of an adapter that of its model; see `find`."""
        return (await self.find(name, kind)).model

    async def find(self, name: str, kind: Kind = "chat") -> Found:
        """What Triton is to be asked for.

        A model that was ready until recently is taken at once: the request may wait for a server. Where a model of
        Triton and an adapter have the same name, it is the model's.

        Raises:
            ApiError: 404 no such model of this kind; 503 it is not ready, or Triton cannot be asked.
        """
        target = self._aliases.get(name, name)
        model = self.servers.recent(target)
        if model is not None and model.kind == kind:
            return Found(target)
        base = self.servers.recent_base(target) if kind == "chat" else None
        if base is not None:
            return Found(base, target)
        models = await self._fresh()
        found, model = Found(target), models.get(target)
        if model is None and kind == "chat" and (base := _base(models, target)):
            found, model = Found(base, target), models[base]
        if model is None or model.kind not in ({kind} if model.ready else {kind, "other"}):
            sentence = f"there is no model {name[:SHOWN]!r} for {kind}; GET /v1/models lists the models"
            raise ApiError(404, sentence, param="model", code="model_not_found")
        if not self.servers.serves(found.model, found.adapter):
            raise unavailable(f"the model {name[:SHOWN]!r} is not ready; try again later", self._retry_after)
        return found

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
        """The models that are ready, adapters and aliases included, by name.

        Raises:
            ApiError: Triton cannot be asked.
        """
        models = await self._fresh()
        served = self._ready_adapters(models) | {
            name: ServedModel(name, name, model.kind)
            for name, model in models.items()
            if model.ready and (model.kind == "chat" or model.kind == "embeddings")
        }
        aliases = {
            alias: replace(served[target], id=alias) for alias, target in self._aliases.items() if target in served
        }
        return sorted((served | aliases).values(), key=attrgetter("id"))

    def _ready_adapters(self, models: Mapping[str, ModelInfo]) -> dict[str, ServedModel]:
        """By name, but for those whose name a model of Triton has."""
        return {
            adapter.name: ServedModel(adapter.name, name, "chat", adapter)
            for name, model in sorted(models.items(), reverse=True)  # of several, that of the first
            for adapter in model.adapters
            if model.kind == "chat" and adapter.name not in models and self.servers.serves(name, adapter.name)
        }

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
        adapter: str | None = None,
    ) -> T:
        """What a server answers; see `retried`.

        Raises:
            TritonChatError: how the last try failed.
        """
        return await retried(self.servers, model, ask, request_id, unless=unless, adapter=adapter)

    async def ask_tokenizer(self, ask: Callable[[AsyncChatClient], Awaitable[T]], request_id: str = "") -> T:
        """`ask` for the model that has the tokenizers of all chat models."""
        return await self.ask(tokenizer.NAME, lambda server: ask(server.client), request_id)

    def admit(self, model: str, adapter: str | None = None) -> None:
        """Raises ApiError (429) if a request would wait for its first token longer than the settings allow."""
        excess_s = self.servers.excess_s(model, adapter)
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
            models = await self.servers.models()
        except TritonChatError as error:
            raise from_client(error, self._retry_after) from error
        self._warn(models)
        return models

    def _warn(self, models: Mapping[str, ModelInfo]) -> None:
        """Of adapters that nobody can name, once each."""
        for model in models.values():
            hidden = {adapter.name for adapter in model.adapters if _base(models, adapter.name) != model.name}
            for adapter in sorted(hidden - self._hidden):
                _log.warning("the adapter %s of %s cannot be named: another model has its name", adapter, model.name)
            self._hidden |= hidden


def _base(models: Mapping[str, ModelInfo], adapter: str) -> str | None:
    """The model that an adapter is of, the first by name; None where a model of Triton has that name."""
    if adapter in models:
        return None
    bases = (name for name, model in models.items() if model.kind == "chat" and adapter in names(model))
    return min(bases, default=None)


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
