"""Steps of decodes alone, captured as CUDA graphs for some batch sizes.

Such a step is a thousand small kernels, which a GPU finishes faster than Python can launch them. Captured once, over
memory that stays where it is, it is one launch (CUDA graphs, CUDA programming guide). Its layers are compiled before
that, where torch's compiler can: norms, rotary embeddings and activations become a kernel each.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from chat_engine.native.attention import IMPLEMENTATION, paged_attention
from chat_engine.native.attention_kernels import Kernels
from chat_engine.native.decodes import Beginning
from chat_engine.native.paged_cache import PagedCache
from chat_engine.native.passes import Line, compute
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

    Args:
        model: whose steps they are.
        cache: that they read and write.
        kernels: by which they do.
        shape: of the tiles; its decodes are the most that a step has.
        longest: blocks of a sequence at most.
        last_tokens: those of the step before, which a step may take.
        compiled: whether to compile the layers.
        capture: in tests, a way that needs no GPU.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: PagedCache,
        kernels: Kernels,
        shape: Shape,
        longest: int,
        last_tokens: Tensor,
        *,
        compiled: bool,
        capture: Capture | None = None,
    ) -> None:
        begin = time.monotonic()

        def make() -> dict[tuple[int, bool], _DecodeGraph]:
            graphs: dict[tuple[int, bool], _DecodeGraph] = {}
            capturing = capture or cuda_capture(model.device)
            larger: _DecodeGraph | None = None
            for size in reversed(batch_sizes(shape.decodes)):
                for shares in (True, False) if size > 1 else (False,):
                    tiles = Shape(shape.wanted, shape.wide, size)
                    larger = _DecodeGraph(model, cache, kernels, tiles, shares, longest, last_tokens, capturing, larger)
                    graphs[size, shares] = larger
            return graphs

        try:
            with compiled_layers(model) if compiled else torch.inference_mode():
                self._graphs = make()
        except Exception as error:
            if not compiled:
                raise
            log.warning("the layers of this model cannot be compiled, which is slower: %s", error)
            self._graphs = make()
        self._sizes = sorted({size for size, _ in self._graphs})
        log.info("captured %d CUDA graphs in %.1f s", len(self._graphs), time.monotonic() - begin)

    def find(self, line: Line, beginnings: Sequence[Beginning]) -> _DecodeGraph | None:
        """The graph that computes a step; None where there is none for it."""
        decodes = len(line.spans)
        place = bisect_left(self._sizes, decodes)
        if len(line.tokens) != decodes or len(line.wanted) != decodes or place == len(self._sizes):
            return None
        return self._graphs[self._sizes[place], bool(beginnings)]


def batch_sizes(most: int) -> list[int]:
    """Sizes that graphs are made for: the padding of a step is a small part of it."""
    most = min(most, _LARGEST)
    sizes = {size for size in (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, most, 64)) if size < most}
    return sorted(sizes | {most})


class _DecodeGraph:
    """The step of up to so many decodes.

    Args:
        shape: of its tiles, with its number of decodes.
        shares: whether any of them may begin with the same blocks.
        larger: one made before, in whose memory this one reads its step and leaves its logits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: PagedCache,
        kernels: Kernels,
        shape: Shape,
        shares: bool,
        longest: int,
        last_tokens: Tensor,
        capture: Capture,
        larger: _DecodeGraph | None,
    ) -> None:
        size = shape.decodes
        sizes = Sizes(
            rows=size,
            kept=0,
            decodes=size,
            narrow=shape.most_tiles,
            wide=shape.most_tiles if shares else 0,
            blocks=size * longest,
            most_parts=shape.most_parts,
        )
        self._shape, self._block_size = shape, cache.block_size
        self.memory: StepMemory = larger.memory if larger else StepMemory(sizes, model.device, copies=2)
        self._inputs = inputs = StepInputs(sizes, model.device, self.memory)
        inputs.fill([], [], [], Tiles(), cache.block_size)
        batch = TiledBatch(cache, kernels.attention(inputs))

        def step() -> Tensor:
            return compute(model, batch, inputs.known_tokens(last_tokens), inputs.positions.long())

        self.logits: Tensor = larger.logits[:size] if larger else torch.empty_like(step())
        self._replay = capture(lambda: self.logits.copy_(step()))

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
