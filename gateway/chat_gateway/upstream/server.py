"""One Triton at one address: what it serves now, and what is known of its health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from chat_gateway.upstream.backlog import Backlogs
from chat_gateway.upstream.waits import within
from triton_chat.client import AsyncChatClient
from triton_chat.errors import ServerSilentError, ServerUnavailableError, TritonChatError
from triton_chat.types import ModelInfo

T = TypeVar("T")

PERIOD_S: Final = 1.0
"""Between two looks."""
LOOK_S: Final = 2.0
"""A server that takes longer to say how it is, is not ready."""
LOST_S: Final = 5.0
"""Nothing was heard for so long, and no look was answered: what runs there is given up. Within 7 seconds of the last
sign of life, since a look begins each `PERIOD_S` and takes `LOOK_S`."""
_FIRST_LIST_S: Final = 10.0
"""For the first list of its models, without which it is not known what it serves."""
_SOON_S: Final = 0.1
"""Between two looks at the least, however often a request fails."""
_FRESH_S: Final = 2.0
_REFUSED_FRESH_S: Final = 0.2
"""How long a look holds; less where it was refused, which costs nothing, so that who is back is found at once."""
_ALONE_S: Final = 1.0
_LONGEST_ALONE_S: Final = 8.0
"""After a failure a server is left alone, each time for twice as long."""


class Server:
    """Looks at itself in the background once `watch` was called. Belongs to one event loop."""

    def __init__(self, client: AsyncChatClient, max_queue_s: float = 0.0) -> None:
        self.client = client
        self.backlogs = Backlogs(max_queue_s)
        """Of what is sent there."""
        self.listed = True
        """Its address is one of the name's."""
        self.up = False
        """It answered the last look, and no request has found it stopping since."""
        self.models: Mapping[str, ModelInfo] = {}
        self.outstanding = 0
        self.used_at = 0.0
        self._fresh_until = 0.0
        self._heard_at = 0.0
        self._answered_at = time.monotonic()
        self._num_failures = 0
        self._failed_at = self._alone_until = 0.0
        self._running: set[asyncio.Future[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._soon: asyncio.Event | None = None

    @property
    def fresh(self) -> bool:
        """Whether the last look still holds."""
        return time.monotonic() < self._fresh_until

    @property
    def left_alone(self) -> bool:
        """Whether requests should go elsewhere, if they can."""
        return time.monotonic() < self._alone_until

    def serves(self, model: str, adapter: str | None = None) -> bool:
        """Whether it has the model ready, and the adapter of it if one is named."""
        found = self.models.get(model)
        return self.up and found is not None and found.ready and (adapter is None or adapter in names(found))

    def heard(self) -> None:
        """A stream has brought something."""
        self._heard_at = time.monotonic()

    def failed(self, *, down: bool) -> None:
        """A request has failed there. Many that fail at the same time count as one.

        Args:
            down: it takes nothing new until it answers the next look, which is brought forward.
        """
        now = time.monotonic()
        if not self.left_alone:
            self._num_failures += 1
            self._failed_at = now
            self._alone_until = now + min(_ALONE_S * 2.0 ** (self._num_failures - 1), _LONGEST_ALONE_S)
        if down:
            self.up = False
        self.look_soon()

    async def run(self, ask: Callable[[Server], Awaitable[T]]) -> T:
        """What `ask` gives.

        Raises:
            ServerUnavailableError: the server does not answer any more.
            TritonChatError: how `ask` failed.
        """
        began = self.used_at = time.monotonic()
        lost = asyncio.get_running_loop().create_future()
        self._running.add(lost)
        self.outstanding += 1
        asking = asyncio.ensure_future(ask(self))
        try:
            await asyncio.wait((asking, lost), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise ServerUnavailableError("the server does not answer any more")
            result = asking.result()
        finally:
            self.outstanding -= 1
            self._running.discard(lost)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        if began > self._failed_at:
            self._num_failures = 0
        return result

    def look_soon(self) -> None:
        """Does not wait for the period to pass."""
        if self._soon is not None:
            self._soon.set()

    def look(self) -> asyncio.Task[None]:
        """One at a time, which all who ask wait for. It never fails."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return self._looking

    def watch(self, on_look: Callable[[Server], None]) -> None:
        """Looks each `PERIOD_S` from now on, if it does not do so yet."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(on_look))

    async def close(self) -> None:
        """What is still running is cancelled."""
        await ended(self._watching, self._looking)
        await self.client.close()

    async def _watch(self, on_look: Callable[[Server], None]) -> None:
        while True:
            self._soon = asyncio.Event()
            await asyncio.shield(self.look())
            on_look(self)
            await asyncio.sleep(_SOON_S)
            await within(PERIOD_S - _SOON_S, self._soon.wait())

    async def _look(self) -> None:
        """First whether it lives, then what it serves: a model that is slow to answer says nothing about the others.

        Who does not answer in time but still sends tokens is busy and not stuck.
        """
        began = time.monotonic()
        lives = await within(LOOK_S, self._lives())
        if lives is None:
            self.up = self.up and self._heard_at >= began
            self._give_up_if_silent(began)
        else:
            self.up = lives and await self._tells_its_models()
        self._fresh_until = time.monotonic() + (_FRESH_S if self.up or lives is None else _REFUSED_FRESH_S)

    async def _lives(self) -> bool | None:
        """None: nothing comes back."""
        try:
            await self.client.check_live()
        except ServerSilentError:  # the connection that looks used may have ended, and those of the answers have not
            return None
        except TritonChatError:  # it stops, or something else answers there, or Triton keeps it from us
            return False
        self._answered_at = time.monotonic()
        return True

    async def _tells_its_models(self) -> bool:
        """What is known stays where the list is late, or a model goes away while it is made."""
        try:
            models = await within(LOOK_S if self.models else _FIRST_LIST_S, self.client.models())
        except ServerUnavailableError:
            return False
        except TritonChatError:
            models = None
        if models is None:
            return bool(self.models)
        self.models = {model.name: model for model in models}
        return True

    def _give_up_if_silent(self, began: float) -> None:
        """Goes by the time before the look: while a look lasted, this process may not have run itself."""
        heard_at = max(self._heard_at, self._answered_at)
        if began - heard_at >= LOST_S - LOOK_S and time.monotonic() - heard_at >= LOST_S:
            for running in self._running:
                if not running.done():
                    running.set_result(None)


def names(model: ModelInfo) -> set[str]:
    """Of its adapters."""
    return {adapter.name for adapter in model.adapters}


async def ended(*tasks: asyncio.Task[None] | None) -> None:
    """Cancels those that run."""
    running = [task for task in tasks if task is not None and not task.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
