"""Triton as the gateway sees it: one client, and the catalogue of the models it serves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from chat_gateway.errors import SHOWN, ApiError, from_client, unavailable
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.details import Details
from chat_gateway.upstream.retries import retried
from triton_chat.client import AsyncChatClient
from triton_chat.errors import TritonChatError
from triton_chat.types import ModelInfo, Timeouts, TokenizerInfo

Kind = Literal["chat", "embeddings"]

_FRESH_S = 2.0
"""How long an answer about the models holds."""
_CONTROL_S = 5.0
_SECOND_OPINION_S = 1.0

NO_CHAT_MODEL = "Triton has no chat model that is ready"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that callers may use."""

    id: str
    target: str
    """Triton's name; another one if `id` is an alias."""
    kind: Kind


class Catalogue:
    """What Triton's repository holds, asked for at most every `_FRESH_S`. One caller asks, the others wait with it."""

    def __init__(self, ask: Callable[[], Awaitable[list[ModelInfo]]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = -_FRESH_S
        self.last: Mapping[str, ModelInfo] = {}
        """The last answer, however old; empty if the last question failed."""

    async def fresh(self) -> Mapping[str, ModelInfo]:
        """The models by name.

        Raises:
            TritonChatError: Triton cannot be asked.
        """
        asking = self.refresh()
        if asking is not None:
            await asyncio.shield(asking)  # a caller that leaves takes the answer from nobody else
        return self.last

    def refresh(self) -> asyncio.Task[None] | None:
        """Ask unless the last answer still holds; returns the question under way, if there is one."""
        if self._asking is None and time.monotonic() - self._asked_at >= _FRESH_S:
            self._asking = asyncio.create_task(self._answer())
            self._asking.add_done_callback(self._done)
        return self._asking

    async def _answer(self) -> None:
        self.last = {model.name: model for model in await self._ask()}
        self._asked_at = time.monotonic()

    def _done(self, asking: asyncio.Task[None]) -> None:
        self._asking = None
        if asking.cancelled() or asking.exception() is not None:
            self.last = {}


class Upstream:
    """The client and the catalogue, for the life of one app. Belongs to one event loop."""

    def __init__(self, settings: GatewaySettings, client: AsyncChatClient | None = None) -> None:
        """Connects to nothing yet.

        Args:
            settings: where Triton is, the time limits, the aliases.
            client: another than that of the settings.
        """
        self.began = int(time.time())
        """Unix time; stands for when a model was made, which nobody knows."""
        self.client = client or AsyncChatClient(
            settings.triton_url,
            timeouts=Timeouts(
                first_token=settings.first_token_timeout,
                idle=settings.token_timeout,
                total=settings.request_timeout,
                control=_CONTROL_S,
                batch=settings.request_timeout,
            ),
        )
        self._aliases = settings.aliases
        self._retry_after = settings.retry_after
        self._catalogue = Catalogue(self._ask)
        self._first_token_timeout = settings.first_token_timeout
        self._details = Details(self._tokenizer_info)

    async def resolve(self, name: str, kind: Kind = "chat") -> str:
        """Triton's name of a model.

        A model that was ready when last heard of is taken at once, and asked about beside the request: whether it still
        is, Triton tells by itself.

        Raises:
            ApiError: 404 no such model of this kind; 503 it is not ready, or Triton cannot be asked.
        """
        target = self._aliases.get(name, name)
        model = self._catalogue.last.get(target)
        if model is not None and model.ready and model.kind == kind:
            self._catalogue.refresh()
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

    async def close(self) -> None:
        """Close the connection; what is still running is cancelled."""
        await self.client.close()

    async def _ask(self) -> list[ModelInfo]:
        return await asyncio.gather(*(self._second_opinion(model) for model in await self.client.models()))

    async def _tokenizer_info(self, target: str) -> TokenizerInfo:
        return await retried(lambda: self.client.tokenizer_info(target, timeout=self._first_token_timeout))

    async def _second_opinion(self, model: ModelInfo) -> ModelInfo:
        """One server that starts or stops must not speak for all. Calls take turns, so two in a row ask two others."""
        if model.ready or model.kind not in get_args(Kind):
            return model
        opinions = await asyncio.gather(*(self._says_ready(model.name) for _ in range(2)))
        return replace(model, ready=any(opinions))

    async def _says_ready(self, name: str) -> bool:
        try:
            return await asyncio.wait_for(self.client.is_ready(name), _SECOND_OPINION_S)
        except asyncio.TimeoutError:
            return False

    async def _fresh(self) -> Mapping[str, ModelInfo]:
        try:
            return await self._catalogue.fresh()
        except TritonChatError as error:
            raise from_client(error, self._retry_after) from error
