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
from chat_engine.native.passes import Line, compute, padded
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
        work = _Work(model, cache, kernels, longest, last_tokens, StepMemory(largest, model.device, copies=2))
        self._graphs: dict[tuple[int, bool], _DecodeGraph] = {}

        def graph(size: int, shares: bool) -> _DecodeGraph:
            return _DecodeGraph(work, replace(shape, decodes=size), shares, capture)

        self._graph = graph
        if model.device.type == "cpu":
            self._checked(1, shares=False)
            return
        begin = time.monotonic()
        try:
            with compiled_layers(model) if compiled else torch.inference_mode():
                self._make_all()
        except Exception as error:
            if not compiled:
                raise
            log.warning("the layers of this model cannot be compiled, which is slower: %s", error)
            self._make_all()
        log.info("captured %d CUDA graphs in %.1f s", len(self._graphs), time.monotonic() - begin)

    def find(self, line: Line, beginnings: Sequence[Beginning]) -> _DecodeGraph | None:
        """The graph that computes a step; None where there is none for it."""
        decodes = len(line.spans)
        place = bisect_left(self._sizes, decodes)
        # Rows whose prompts are scored may stand elsewhere among those wanted.
        if len(line.tokens) != decodes or place == len(self._sizes) or line.wanted != list(range(decodes)):
            return None
        size, shares = self._sizes[place], bool(beginnings)
        return self._graphs.get((size, shares)) or self._checked(size, shares)

    def _make_all(self) -> None:
        for size in reversed(self._sizes):
            for shares in (True, False) if size > 1 else (False,):
                self._graphs[size, shares] = self._graph(size, shares)

    def _checked(self, size: int, shares: bool) -> _DecodeGraph:
        graph = self._graph(size, shares)
        graph.check()
        self._graphs[size, shares] = graph
        return graph


def batch_sizes(most: int, device: torch.device) -> list[int]:
    """Sizes that graphs are made for: the padding of a step is a small part of it."""
    most = min(most, _LARGEST)
    if device.type == "cpu":
        return sorted({min(padded(count, device), most) for count in range(1, most + 1)})
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
    ) -> None:
        self.model, self.cache, self.kernels = model, cache, kernels
        self.longest, self.last_tokens, self.memory = longest, last_tokens, memory
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self._logits = torch.empty(0, device=model.device)

    def logits_like(self, some: Tensor) -> Tensor:
        """Memory for `[rows, vocab]`, which all graphs leave theirs in."""
        if len(self._logits) < len(some):
            self._logits = torch.empty_like(some)
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
        self._shape, self._block_size, self._vocab_size = shape, work.cache.block_size, work.vocab_size
        self._inputs = inputs = StepInputs(sizes, work.model.device, work.memory)
        inputs.fill([], [], [], Tiles(), work.cache.block_size)
        batch = TiledBatch(work.cache, work.kernels.attention(inputs))

        def step() -> Tensor:
            return compute(work.model, batch, inputs.known_tokens(work.last_tokens), inputs.positions.long())

        self._step = step
        self.logits: Tensor = work.logits_like(step())
        self._replay = capture(lambda: self.logits.copy_(step()))

    @torch.inference_mode()
    def check(self) -> None:
        """Raises RuntimeError where other tokens than those captured give other logits than without the graph."""
        inputs = self._inputs
        inputs.fill([], [], [], Tiles(), self._block_size)
        generator = torch.Generator().manual_seed(0)
        for numbers, most in ((inputs.tokens, self._vocab_size), (inputs.positions, self._block_size)):
            numbers.copy_(torch.randint(most, numbers.shape, generator=generator))
        self._replay()
        if not torch.equal(self.logits, self._step()):
            raise RuntimeError("a captured step gives other logits")

    def __call__(self, line: Line, beginnings: Sequence[Beginning]) -> Tensor:
        """Logits `[decodes, vocab]`, valid until another graph runs."""
        tiles = cut(line.spans, beginnings, self._block_size, self._shape)
        self._inputs.fill(line.tokens, line.spans, [], tiles, self._block_size, line.sources)
        self._replay()
        return self.logits[: len(line.tokens)]


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
