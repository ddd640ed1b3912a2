"""The forward pass with attention in tiles; steps of decodes alone are captured, where that pays."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chat_engine.native.attention_kernels import Kernels
from chat_engine.native.decode_graphs import Capture, DecodeGraphs
from chat_engine.native.decodes import Beginning
from chat_engine.native.paged_cache import PagedCache
from chat_engine.native.passes import Line, compute, padded, padded_sizes
from chat_engine.native.recording import CannotRecordError
from chat_engine.native.runner import Row
from chat_engine.native.step_inputs import Sizes, StepInputs
from chat_engine.native.step_threads import StepThreads
from chat_engine.native.tiled import TiledBatch
from chat_engine.native.tiles import Shape, cut

log = logging.getLogger(__name__)

# Programs of the attention kernel for each multiprocessor, or core, so that all have work until the end.
_PROGRAMS = 4


class TiledPass:
    """See `ForwardPass`.

    Args:
        model: transformers', with paged attention.
        cache: whose blocks the kernels can read where they lie.
        kernels: for the device.
        max_decodes: sequences of a step.
        shapes: that the rows of steps are padded to; see `padded`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: PagedCache,
        kernels: Kernels,
        max_decodes: int,
        *,
        shapes: int | None = None,
    ) -> None:
        self._model = model
        self._cache = cache
        self._kernels = kernels
        self._device = model.device
        self._shapes = shapes
        self.threads = StepThreads(model.device)
        kv_heads = min(keys.shape[2] for keys in cache.keys)
        heads = int(model.config.get_text_config().num_attention_heads)
        wanted = -(-_PROGRAMS * _processors(self._device) // kv_heads)
        self._shape = Shape(wanted, kernels.wide_rows(heads // kv_heads), max_decodes)
        self._last_tokens = torch.zeros(max_decodes, dtype=torch.long, device=self._device)
        self._graphs: DecodeGraphs | None = None

    def capture(self, longest: int, by: Capture, *, compiled: bool = False) -> None:
        """Has steps of decodes captured, of sequences of up to so many blocks; see `DecodeGraphs`."""
        try:
            self._graphs = DecodeGraphs(
                self._model, self._cache, self._kernels, self._shape, longest, self._last_tokens, by,
                compiled=compiled,
            )  # fmt: skip
        except RuntimeError as error:
            self._without_graphs(error)

    def _without_graphs(self, error: RuntimeError) -> None:
        self._graphs = None
        log.warning("steps of this model cannot be captured, which is slower: %s", error)

    @property
    def runs_ahead(self) -> bool:
        """See `ForwardPass`."""
        return self._graphs is not None

    def note(self, token_ids: Tensor) -> None:
        """See `ForwardPass`."""
        if len(token_ids) <= len(self._last_tokens):  # else there were guesses, which nothing follows
            self._last_tokens[: len(token_ids)].copy_(token_ids)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row], beginnings: Sequence[Beginning] = ()) -> Tensor:
        """See `ForwardPass`."""
        line = Line.of(rows)
        self.threads.choose(len(line.tokens))
        if graph := self._graphs and self._graphs.find(line, beginnings):
            try:
                return graph(line, beginnings)
            except CannotRecordError as error:  # with so many rows, though it could with one
                self._without_graphs(error)
        tiles = cut(line.spans, beginnings, self._cache.block_size, self._shape)
        count, kept = len(line.tokens), len(line.wanted)
        num_rows = padded(count, self._shapes)
        sizes = Sizes.of(num_rows, padded(kept, self._shapes), tiles, self._shape, padding=num_rows - count)
        inputs = StepInputs(sizes, self._device)
        inputs.fill(line.tokens, line.spans, line.wanted, tiles, self._cache.block_size, line.sources)
        tokens, positions = inputs.known_tokens(self._last_tokens), inputs.positions.long()
        keep = inputs.kept.long() if line.wanted else positions[:1] * 0
        batch = TiledBatch(self._cache, self._kernels.attention(inputs))
        return compute(self._model, batch, tokens, positions, keep)[:kept]

    def sizes(self, most: int) -> list[int]:
        """See `ForwardPass`."""
        return padded_sizes(most, self._shapes)


def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return torch.get_num_threads()
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
