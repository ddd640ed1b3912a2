"""vLLM behind the door: requests in as token ids, token ids out, one task of an event loop for each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from functools import partial

from tokenizers import Tokenizer
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.v1.engine.exceptions import EngineDeadError

from chat_engine.answering.grammar import Grammars
from chat_engine.answering.guide import guide_of
from chat_engine.config import EngineConfig
from chat_engine.errors import (
    ChatError,
    InvalidArgumentError,
    NotComputedError,
    OverloadedError,
    RequestCancelledError,
)
from chat_engine.protocol import Sink
from chat_engine.request import ChatRequest, FinishReason
from chat_engine.service.door import Door
from chat_engine.text.detokenizer import TokenNames
from chat_engine.vllm.loading import LoadedModel
from chat_engine.vllm.running import Running
from chat_engine.vllm.sampling import check, sampling_params
from chat_engine.vllm.steps import Step

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25  # how often it is looked whether vLLM's processes still live, also while nothing runs
_ENDS_SECONDS = 2.0

End = tuple[FinishReason, ChatError | None]


class VllmEngine(Door[Running]):
    """Continuous batching by vLLM; see `protocol.Engine` for the calls.

    Args:
        config: limits.
        model: the loaded model; closed with the engine.
        tokenizer: turns ids into text.
        on_failure: called once, when vLLM's core is gone and everything in flight has been told.
        end_ids: tokens that end an answer, beside those that the checkpoint's files name.
        grammars: compiles what answers must follow; closed with the engine. None: such requests are refused.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        tokenizer: Tokenizer,
        on_failure: Callable[[], None] | None = None,
        end_ids: frozenset[int] = frozenset(),
        grammars: Grammars | None = None,
    ) -> None:
        super().__init__(config.max_sequences + config.queue_room, config.stall_seconds, model.longest_pass)
        self._model = model
        self._tokenizer = tokenizer
        self._names = TokenNames(tokenizer)
        self._end_ids = model.defaults.eos_ids | end_ids
        self._grammars = grammars
        self._on_failure = on_failure
        self._woken = asyncio.Event()
        self._running: dict[str, tuple[Running, asyncio.Task[End]]] = {}
        model.steps.listener = self._note_step
        self._served = model.loop.start(self._serve())

    # Calls from other threads; the rest of them is the door's.

    def submit(self, request: ChatRequest, sink: Sink) -> None:
        """See `protocol.Engine`. It compiles the request's grammar, in the caller's thread: InvalidArgumentError."""
        check(request, greedy_alone=self._model.greedy_alone)
        guide, places = guide_of(request, self._end_ids, self._grammars, leads_calls=False)
        self._enter(request.id, Running(request, sink, guide, self._tokenizer, self._names, places))

    def close(self) -> None:
        """See `protocol.Engine`."""
        super().close()
        self._served.result()
        self._model.close()
        if self._grammars:
            self._grammars.close()

    def _wake(self) -> None:
        loop = self._model.loop.loop
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._woken.set)

    # The event loop.

    async def _serve(self) -> None:
        try:
            await self._let_in()
        except Exception:
            log.exception("the engine stops")
            self._fail()
        if self._failed:  # vLLM itself would wait for its workers first, and for those that are stuck in vain
            self._model.processes.end()
        await self._end_all()
        if self._failed and self._on_failure:
            self._on_failure()

    async def _let_in(self) -> None:
        while not self._is_over:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _LOOK_SECONDS)
            self._woken.clear()
            if (self._model.llm.errored or self._model.processes.one_is_gone()) and not self._is_over:
                log.error("a process of vLLM is gone; the engine stops")
                self._fail()
            self._take_in()

    def _take_in(self) -> None:
        arrived, cancelled = self._take()
        for running in arrived:
            task = self._model.loop.loop.create_task(self._follow(running))
            self._running[running.request.id] = running, task
            task.add_done_callback(partial(self._note_end, running))
        for request_id in cancelled & self._running.keys():
            self._running[request_id][1].cancel()

    async def _end_all(self) -> None:
        """Ends everything, also where vLLM does not answer any more, and what has not been taken in yet."""
        self._take_in()
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_ENDS_SECONDS)
            await asyncio.sleep(0)  # their callbacks
        for running, _ in list(self._running.values()):
            self._end(running, FinishReason.ERROR, self._stop_error())

    async def _follow(self, running: Running) -> End:
        """Hands on what vLLM makes of a request until it ends. vLLM stops when this does."""
        request = running.request
        params = sampling_params(request, running.guide)
        adapters = self._model.adapters
        adapter = adapters[request.adapter] if request.adapter else adapters.get(None)
        prompt = tokens_input(list(request.prompt_ids))
        outputs = self._model.llm.generate(prompt, params, request.id, lora_request=adapter)
        async with aclosing(outputs):
            async for output in outputs:
                reason = running.take(output)
                with self._numbers() as stats:
                    stats.generation_tokens += len(output.outputs[0].token_ids) if request.max_tokens else 0
                if error := running.guide.error:
                    return FinishReason.ERROR, error
                if reason:
                    return reason, None
                running.tell()
        raise RuntimeError("vLLM has ended an answer by itself")

    def _note_end(self, running: Running, task: asyncio.Task[End]) -> None:
        reason, error = self._why(running, task)
        if running.request.id in self._running:
            self._end(running, reason, error)

    def _end(self, running: Running, reason: FinishReason, error: ChatError | None) -> None:
        """The one place where a request ends: makes room, tells the caller."""
        del self._running[running.request.id]
        if not self._running:  # vLLM makes no step any more that would say so
            self._note_idle()
        self._ended(running.request, reason, running.progress)
        try:
            running.tell(reason, error)
        except Exception:  # the others must hear of theirs all the same
            log.exception("request %s could not be told that it has ended", running.request.id)

    def _why(self, running: Running, task: asyncio.Task[End]) -> End:
        if task.cancelled():
            if self._is_over:
                return FinishReason.ERROR, self._stop_error()
            return FinishReason.CANCELLED, RequestCancelledError("the request was cancelled")
        failure = task.exception()
        if failure is None:
            return task.result()
        if isinstance(failure, EngineDeadError):
            self._fail()
            return FinishReason.ERROR, self._stop_error()
        if isinstance(failure, VLLMClientError):
            return FinishReason.ERROR, _refusal(failure)
        if isinstance(failure, GracefulHTTPError):
            return FinishReason.ERROR, OverloadedError("vLLM has no room for this request; try again later")
        log.error("request %s: it could not be computed", running.request.id, exc_info=failure)
        return FinishReason.ERROR, NotComputedError("internal error: the model could not compute this request")

    def _note_step(self, cores: list[Step], step: Step) -> None:
        here = len(self._running)  # a core that has not made a step since an abort still counts what was aborted
        with self._numbers() as stats:
            stats.running = min(here, sum(core.running for core in cores))
            stats.waiting = min(here - stats.running, sum(core.waiting for core in cores))
            stats.kv_cache_usage = sum(core.usage for core in cores) / len(cores)
            stats.preemptions += step.preemptions
            stats.drafted_tokens += step.drafted
            stats.accepted_tokens += step.accepted
            stats.steps += 1
            stats.last_step = time.time()

    def _note_idle(self) -> None:
        self._model.steps.forget()
        with self._numbers() as stats:
            stats.running = stats.waiting = 0
            stats.kv_cache_usage = 0.0


def _refusal(failure: VLLMClientError) -> InvalidArgumentError:
    """What vLLM refuses a request for, in its own words."""
    words = " ".join(str(failure.args[0] if failure.args else failure).split())
    return InvalidArgumentError(words.rstrip("."), field=getattr(failure, "parameter", None))
