"""The contenders that are no servers: the engine by itself, and transformers' ways to generate.

Each computes in the process that opens it, and notes when tokens come in its own threads.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from benchmarks.answers import Answer, WrongAnswerError, check
from benchmarks.doors import Door
from benchmarks.jobs import Job
from benchmarks.loads import Ask
from benchmarks.setting import Setting
from chat_engine.config import parse_config
from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.request import ChatRequest, SamplingParams, TokenEvent
from chat_engine.service.model_thread import ModelThread

PAD = 2
BATCH = 8


@dataclass(frozen=True)
class EngineDoor(Door):
    """The engine native: requests in, events out."""

    settings: dict[str, object]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        config = parse_config(self.settings)
        thread = ModelThread()
        runner = thread.call(lambda: ModelRunner(config))
        engine = NativeEngine(config, runner, PromptEncoder.load(config).backend, thread=thread)
        numbers = itertools.count()

        async def ask(job: Job, answer: Answer) -> None:
            loop, done = asyncio.get_running_loop(), asyncio.Event()
            counted = (0, 0)

            def sink(event: TokenEvent) -> None:
                nonlocal counted
                if event.num_output_tokens > counted[1]:
                    answer.times.append(time.monotonic())
                counted = (event.num_input_tokens, event.num_output_tokens)
                if event.finish_reason is not None:
                    loop.call_soon_threadsafe(done.set)

            name = str(next(numbers))
            sampling = SamplingParams(temperature=0, ignore_eos=True)
            engine.submit(ChatRequest(name, tuple(job.prompt_ids), sampling, job.max_tokens, 0), sink)
            try:
                await done.wait()
            finally:
                engine.cancel(name)
            check(answer, len(job.prompt_ids), counted)

        yield ask
        engine.close()


@dataclass(frozen=True)
class LibraryDoor(Door):
    """A model of transformers."""

    checkpoint: Path
    setting: Setting

    def model(self) -> PreTrainedModel:
        found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=self.setting.dtype)
        return found if self.setting.cpus else found.to("cuda")  # type: ignore[arg-type]


@dataclass(frozen=True)
class ContinuousBatchingDoor(LibraryDoor):
    """transformers' own continuous batching, told never to stop early, with the cache that all have."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=PAD)
        page = ContinuousBatchingConfig.page_size
        config = ContinuousBatchingConfig(
            num_blocks=self.setting.kv_cache_tokens // page,
            max_batch_tokens=self.setting.max_step_tokens,
            max_requests_per_batch=self.setting.max_sequences,
        )
        start = self.model().continuous_batching_context_manager
        numbers = itertools.count()
        with start(generation_config=greedy, timeout=5, continuous_batching_config=config) as manager:  # type: ignore[operator]

            async def ask(job: Job, answer: Answer) -> None:
                done, name = asyncio.Event(), str(next(numbers))
                tokens = 0

                def sink(output: Any) -> None:
                    nonlocal tokens
                    answer.times.append(time.monotonic())
                    tokens = len(output.generated_tokens)
                    if output.error is not None or output.is_finished():
                        done.set()

                manager.register_result_handler(name, sink)
                manager.add_request(
                    job.prompt_ids, name, max_new_tokens=job.max_tokens, eos_token_id=-1, streaming=True
                )
                try:
                    await done.wait()
                finally:
                    if not done.is_set():
                        manager.cancel_request(name)
                check(answer, len(job.prompt_ids), (len(job.prompt_ids), tokens))

            yield ask


class _Times(BaseStreamer):
    """When `generate` had each token of its batch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        if value.ndim == 1:  # the prompts come first, as a matrix
            self.times.append(time.monotonic())

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class StaticBatchesDoor(LibraryDoor):
    """`generate` on left-padded batches in order of arrival; each lasts as long as its longest answer."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        model = self.model()
        waiting: asyncio.Queue[tuple[Job, Callable[[list[float]], None]]] = asyncio.Queue()

        async def serve() -> None:
            while True:
                batch = [await waiting.get()]
                while not waiting.empty() and len(batch) < BATCH:
                    batch.append(waiting.get_nowait())
                times = await asyncio.to_thread(generate, model, [job for job, _ in batch])
                for _, tell in batch:
                    tell(times)

        async def ask(job: Job, answer: Answer) -> None:
            done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
            waiting.put_nowait((job, done.set_result))
            # What a batch makes beyond a request's own number of tokens does not count.
            answer.times = (await done)[: job.max_tokens]
            check(answer, len(job.prompt_ids), (len(job.prompt_ids), len(answer.times)))

        async with asyncio.TaskGroup() as group:
            server = group.create_task(serve())
            yield ask
            server.cancel()


def generate(model: PreTrainedModel, jobs: list[Job]) -> list[float]:
    """Runs a batch; gives the time of each of its steps."""
    width, tokens = max(len(job.prompt_ids) for job in jobs), max(job.max_tokens for job in jobs)
    ids = torch.full((len(jobs), width), PAD)
    mask = torch.zeros_like(ids)
    for row, job in enumerate(jobs):
        ids[row, width - len(job.prompt_ids) :] = torch.tensor(job.prompt_ids)
        mask[row, width - len(job.prompt_ids) :] = 1
    times = _Times()
    with torch.inference_mode():
        out = model.generate(  # type: ignore[operator]
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            streamer=times,
        )
    if out.shape[1] - width != tokens:
        raise WrongAnswerError(f"{out.shape[1] - width} tokens instead of {tokens}")
    return times.times
