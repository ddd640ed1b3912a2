"""Paged attention of a step in tiles, by kernels that read the cache where it lies; see `tiles`."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from chat_engine.native.attention import AttentionBatch
from chat_engine.native.attention_kernels import Kernels, LayerAttention
from chat_engine.native.copied import CopiedBatch
from chat_engine.native.cpu_kernels import CpuKernels
from chat_engine.native.decodes import Beginning
from chat_engine.native.paged_cache import LayerShape, PagedCache, Span
from chat_engine.native.step_inputs import Sizes, StepInputs
from chat_engine.native.tiles import Shape, cut

log = logging.getLogger(__name__)


class TiledBatch:
    """See `AttentionBatch`.

    Args:
        cache: where keys and values lie.
        attention: of the step.
    """

    def __init__(self, cache: PagedCache, attention: LayerAttention) -> None:
        self._cache = cache
        self._attention = attention

    @classmethod
    def of(
        cls,
        kernels: Kernels,
        cache: PagedCache,
        spans: Sequence[Span],
        group: int,
        beginnings: Sequence[Beginning] = (),
        wanted: int = 1,
    ) -> TiledBatch:
        """One step by itself, of heads of which `group` share a KV head, in about `wanted` tiles of decodes."""
        shape = Shape(wanted, kernels.wide_rows(group), sum(span.count == 1 for span in spans))
        tiles = cut(spans, beginnings, cache.block_size, shape)
        rows = spans[-1].start + spans[-1].count
        inputs = StepInputs(Sizes.of(rows, 0, tiles, shape), cache.keys[0].device)
        inputs.fill([0] * rows, spans, [], tiles, cache.block_size)
        return cls(cache, kernels.attention(inputs))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """See `AttentionBatch.attend`."""
        q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
        return self._attention(q, k, v, self._cache.keys[layer], self._cache.values[layer], scale, window)


def find_kernels(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Those that there are for this device and type; whether they work with a model is another question."""
    if device.type == "cpu":
        return CpuKernels.find(dtype)
    try:
        kernels: Kernels = importlib.import_module("chat_engine.native.triton_kernels").TritonKernels()
    except ImportError as error:
        log.warning("the Triton language is not installed, so blocks are copied, which is slower: %s", error)
        return None
    return kernels


def kernels_work(
    kernels: Kernels, block_size: int, heads: int, shape: LayerShape, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether they run here, and agree with scaled dot-product attention over copies.

    Tried rather than derived: it depends on the GPU, and on a compiler of C being there.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    spans = [Span(0, 1, 2 * block_size + 1, [3, 1, 2]), Span(1, 2, 2, [4, 5])]
    q = random(3, heads, shape.key_dim)
    k, v = random(3, shape.kv_heads, shape.key_dim), random(3, shape.kv_heads, shape.value_dim)
    keys, values = (random(6, block_size, *new.shape[1:]) for new in (k, v))

    def attend(*, tiled: bool) -> Tensor:
        cache = PagedCache([shape], 6, block_size, dtype, device)
        cache.keys[0].copy_(keys)
        cache.values[0].copy_(values)
        batch: AttentionBatch = CopiedBatch(cache, spans, (), device)
        if tiled:
            batch = TiledBatch.of(kernels, cache, spans, heads // shape.kv_heads)
        return batch.attend(0, q, k, v, shape.key_dim**-0.5, None).float().cpu()

    try:
        result = attend(tiled=True)
    except Exception as error:  # noqa: BLE001 - of its compiler there are many
        log.warning("attention kernels do not run here, so blocks are copied, which is slower: %s", error)
        return False
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    agrees = torch.allclose(result, attend(tiled=False), atol=tolerance, rtol=tolerance)
    if not agrees:
        log.warning("attention kernels are wrong here, so blocks are copied, which is slower")
    return agrees
