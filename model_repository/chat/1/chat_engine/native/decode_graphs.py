"""Steps of decodes alone, captured for some batch sizes: as CUDA graphs, or by `recording` on a CPU.

Such a step is a thousand small kernels, which a GPU finishes faster than Python can launch them. Captured once, over
memory that stays where it is, it is one launch (CUDA graphs, CUDA programming guide). Its layers are compiled before
that, where torch's compiler can: norms, rotary embeddings and activations become a kernel each. On a CPU, what Python
does between the products takes a good part of a step of few rows, and is in the way of the process's other threads.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from chat_engine.native.attention import IMPLEMENTATION, paged_attention
from chat_engine.native.attention_kernels import Kernels
from chat_engine.native.decodes import Beginning
from chat_engine.native.paged_cache import PagedCache
from chat_engine.native.passes import SHAPES, Line, compute, padded_sizes
from chat_engine.native.step_inputs import Sizes, StepInputs, StepMemory
from chat_engine.native.tiled import TiledBatch
from chat_engine.native.tiles import Shape, Tiles, cut

log = logging.getLogger(__name__)

Capture = Callable[[Callable[[], object]], Callable[[], object]]
"""Takes work over memory that stays, and gives what does it again."""

# Larger steps take longer to compute than to launch.
_LARGEST = 512


class DecodeGraphs:
    """The captured steps; a step is computed by the smallest that holds it.

    On a GPU all are captured at once. On a CPU each is when it is needed first: that takes little longer than the step.

    Args:
        model: whose steps they are.
        cache: that they read and write.
        kernels: by which they do.
        shape: of the tiles; its decodes are the most that a step has.
        longest: blocks of a sequence at most.
        last_tokens: those of the step before, which a step may take.
        capture: for the device.
        compiled: whether to compile the layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: PagedCache,
        kernels: Kernels,
        shape: Shape,
        longest: int,
        last_tokens: Tensor,
        capture: Capture,
        *,
        compiled: bool = False,
    ) -> None:
        self._sizes = batch_sizes(shape.decodes, model.device)
        largest = _sizes(replace(shape, decodes=self._sizes[-1]), longest, shares=True)
        memory = StepMemory(largest, model.device, copies=2)
        work = _Work(model, cache, kernels, longest, last_tokens, memory, self._sizes[-1])

        def graph(size: int, shares: bool) -> _DecodeGraph:
            return _DecodeGraph(work, replace(shape, decodes=size), shares, capture)

        self._graph = graph
        self._graphs: dict[tuple[int, bool], _DecodeGraph] = {}
        if model.device.type == "cpu":
            self._graphs[1, False] = first = graph(1, False)
            first.capture()
            first.check()
            return
        begin = time.monotonic()
        try:
            with compiled_layers(model) if compiled else torch.inference_mode():
                self._capture_all()
        except Exception as error:
            if not compiled:
                raise
            log.warning("the layers of this model cannot be compiled, which is slower: %s", error)
            self._capture_all()
        log.info("captured %d CUDA graphs in %.1f s", len(self._graphs), time.monotonic() - begin)

    def find(self, line: Line, beginnings: Sequence[Beginning]) -> _DecodeGraph | None:
        """The graph that computes a step; None where there is none for it."""
        decodes = len(line.spans)
        place = bisect_left(self._sizes, decodes)
        # Rows whose prompts are scored may stand elsewhere among those wanted.
        if len(line.tokens) != decodes or place == len(self._sizes) or line.wanted != list(range(decodes)):
            return None
        key = self._sizes[place], bool(beginnings)
        if key not in self._graphs:
            self._graphs[key] = self._graph(*key)
        return self._graphs[key]

    def _capture_all(self) -> None:
        for size in reversed(self._sizes):
            for shares in (True, False) if size > 1 else (False,):
                graph = self._graph(size, shares)
                graph.capture()
                self._graphs[size, shares] = graph


def batch_sizes(most: int, device: torch.device) -> list[int]:
    """Sizes that graphs are made for: the padding of a step is a small part of it."""
    most = min(most, _LARGEST)
    if device.type == "cpu":
        return padded_sizes(most, SHAPES)[::-1]
    sizes = {size for size in (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, most, 64)) if size < most}
    return sorted(sizes | {most})


def _sizes(shape: Shape, longest: int, *, shares: bool) -> Sizes:
    """Of the steps of a graph, of sequences of up to `longest` blocks."""
    return Sizes(
        rows=shape.decodes,
        kept=0,
        decodes=shape.decodes,
        narrow=shape.most_tiles,
        wide=shape.most_tiles if shares else 0,
        blocks=shape.decodes * longest,
        most_parts=shape.most_parts,
    )


class _Work:
    """What all graphs have in common; see `DecodeGraphs`."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: PagedCache,
        kernels: Kernels,
        longest: int,
        last_tokens: Tensor,
        memory: StepMemory,
        most: int,
    ) -> None:
        self.model, self.cache, self.kernels = model, cache, kernels
        self.longest, self.last_tokens, self.memory, self._most = longest, last_tokens, memory, most
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self._logits: Tensor | None = None

    @property
    def has_logits(self) -> bool:
        """Whether there is memory for them."""
        return self._logits is not None

    def logits_like(self, some: Tensor) -> Tensor:
        """Memory for `[rows, vocab]`, which all graphs leave theirs in."""
        if self._logits is None:
            self._logits = some.new_empty(self._most, some.shape[1])
        return self._logits[: len(some)]


class _DecodeGraph:
    """The step of up to so many decodes, over memory that it shares with others.

    Args:
        work: that they have in common.
        shape: of its tiles, with its number of decodes.
        shares: whether any of them may begin with the same blocks.
        capture: for the device.
    """

    def __init__(self, work: _Work, shape: Shape, shares: bool, capture: Capture) -> None:
        sizes = _sizes(shape, work.longest, shares=shares)
        self._work, self._shape, self._by = work, shape, capture
        self._inputs = StepInputs(sizes, work.model.device, work.memory)
        self._batch = TiledBatch(work.cache, work.kernels.attention(self._inputs))
        self.logits: Tensor | None = None
        self._replay: Callable[[], object] | None = None

    def capture(self) -> None:
        """Captures a step of nothing but padding."""
        self._fill()
        if not self._work.has_logits:  # none may be allocated while it is captured
            self._work.logits_like(self._step())
        self._replay = self._by(self._take)

    @torch.inference_mode()
    def check(self) -> None:
        """Raises RuntimeError where other tokens than those captured give other logits than without the graph."""
        self._fill()
        generator = torch.Generator().manual_seed(0)
        for numbers, most in (
            (self._inputs.tokens, self._work.vocab_size),
            (self._inputs.positions, self._work.cache.block_size),
        ):
            numbers.copy_(torch.randint(most, numbers.shape, generator=generator))
        assert self._replay is not None
        assert self.logits is not None
        self._replay()
        if not torch.equal(self.logits, self._step()):
            raise RuntimeError("a captured step gives other logits")

    def __call__(self, line: Line, beginnings: Sequence[Beginning]) -> Tensor:
        """Logits `[decodes, vocab]`, valid until another graph runs.

        The first step is captured while it is computed, where that has not been done. Raises CannotRecordError.
        """
        self._fill(line, cut(line.spans, beginnings, self._work.cache.block_size, self._shape))
        if self._replay:
            self._replay()
        else:
            self._replay = self._by(self._take)
        assert self.logits is not None
        return self.logits[: len(line.tokens)]

    def _fill(self, line: Line | None = None, tiles: Tiles | None = None) -> None:
        block_size = self._work.cache.block_size
        if line is None or tiles is None:
            self._inputs.fill([], [], [], Tiles(), block_size)
        else:
            self._inputs.fill(line.tokens, line.spans, [], tiles, block_size, line.sources)

    def _step(self) -> Tensor:
        inputs = self._inputs
        tokens = inputs.known_tokens(self._work.last_tokens)
        return compute(self._work.model, self._batch, tokens, inputs.positions.long())

    def _take(self) -> None:
        made = self._step()
        self.logits = self._work.logits_like(made)
        self.logits.copy_(made)


def cuda_capture(device: torch.device) -> Capture:
    """Captures work as CUDA graphs that share their memory: none of them runs beside another."""
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Callable[[], object]) -> Callable[[], object]:
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):  # kernels are compiled here, which cannot be captured
            work()
        torch.cuda.current_stream(device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        return graph.replay

    return capture


@contextmanager
def compiled_layers(model: PreTrainedModel, backend: str = "inductor") -> Iterator[None]:
    """The layers that the model repeats, compiled: one code for all of them and for all batch sizes.

    Other steps are computed without: each of their many shapes might have to be compiled while somebody waits.
    """
    count = int(model.config.get_text_config().num_hidden_layers)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    layers = list(next(lists, ()))
    # It is another for each layer, and calls kernels that are compiled by themselves.
    AttentionInterface.register(IMPLEMENTATION, torch.compiler.disable(paged_attention))  # type: ignore[no-untyped-call]
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    try:
        with torch.inference_mode():
            yield
    finally:
        AttentionInterface.register(IMPLEMENTATION, paged_attention)
        for layer in layers:
            layer._compiled_call_impl = None  # noqa: SLF001
