"""Token ids to vectors: grouped by length, padded, one forward pass a group, pooled."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chat_engine.errors import UnsupportedModelError
from embedder.checkpoint import load_checkpoint
from embedder.config import EmbedderConfig, PoolingName
from embedder.errors import ForwardError

log = logging.getLogger(__name__)

Vector = npt.NDArray[np.float32]
TokenIds = Sequence[int]

_CPU_BATCH_TOKENS = 1024
_CUDA_BATCH_TOKENS = 16384
# How far the vector of a text may move when the text is padded, relative to its length.
_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_16_BIT = 5e-2
_CHECK_TOKENS = (7, 32)


class Encoder:
    """An encoder model and its pooling. Load it and use it on one thread: OpenMP keeps workers for each."""

    def __init__(self, config: EmbedderConfig) -> None:
        """Loads the checkpoint and tries it out.

        Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint.
        """
        torch.set_num_threads(config.threads or max(1, len(os.sched_getaffinity(0)) // 2))
        self.checkpoint = load_checkpoint(config)
        self._model, self._device = self.checkpoint.model, self.checkpoint.model.device
        self._pool = _POOLINGS[self.checkpoint.pooling]
        default = _CPU_BATCH_TOKENS if self._device.type == "cpu" else _CUDA_BATCH_TOKENS
        self._max_batch_tokens = config.max_batch_tokens or default
        self._check_padding()
        log.info(
            "loaded: %s, %s, %s pooling, %d components, texts of up to %d tokens",
            self._model.dtype, self._device, self.checkpoint.pooling, self.checkpoint.width, self.checkpoint.max_length,
        )  # fmt: skip

    def encode(self, rows: Sequence[TokenIds]) -> list[Vector | ForwardError]:
        """A vector `[width]` for each row, not normalised, or why there is none. A row fails alone."""
        results: list[Vector | ForwardError] = [ForwardError("internal error")] * len(rows)
        for group in length_groups([len(row) for row in rows], self._max_batch_tokens):
            for index, result in zip(group, self._encode_group([rows[index] for index in group]), strict=True):
                results[index] = result
        return results

    def works(self) -> bool:
        """Whether the model can still compute anything: after some errors a GPU cannot."""
        return isinstance(self._encode_group([[0]])[0], np.ndarray)

    def _encode_group(self, rows: list[TokenIds]) -> list[Vector | ForwardError]:
        """One forward pass; where it fails, one for each half, so that a text takes no other with it."""
        try:
            return [_finite(vector) for vector in self._forward(rows)]
        except Exception:
            log.exception("a forward pass over %d texts, up to %d tokens, failed", len(rows), max(map(len, rows)))
        # Here and not above, where the error still holds the memory of the failed pass.
        if len(rows) == 1:
            return [ForwardError("internal error: the model failed on this text")]
        half = len(rows) // 2
        return self._encode_group(rows[:half]) + self._encode_group(rows[half:])

    @torch.inference_mode()
    def _forward(self, rows: list[TokenIds]) -> npt.NDArray[np.float32]:
        """Vectors `[rows, width]` of the rows padded to the longest."""
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        ids = torch.tensor([[*row, *[self.checkpoint.pad_id] * (longest - len(row))] for row in rows])
        mask = torch.arange(longest)[None] < lengths[:, None]
        mask, lengths = mask.to(self._device), lengths.to(self._device)
        output = self._model(input_ids=ids.to(self._device), attention_mask=mask.long())
        vectors = self._pool(output.last_hidden_state.float(), mask, lengths)
        return np.asarray(vectors.cpu().numpy())

    def _check_padding(self) -> None:
        """Refuses a model whose vector of a text depends on the padding, and so on what else is in the batch."""
        generator = torch.Generator().manual_seed(0)
        rows = [
            torch.randint(self.checkpoint.vocab_size, (min(count, self.checkpoint.max_length),), generator=generator)
            for count in _CHECK_TOKENS
        ]
        short, long = (row.tolist() for row in rows)
        alone, padded = self._forward([short])[0], self._forward([short, long])[0]
        moved = float(np.linalg.norm(alone - padded) / np.linalg.norm(alone))
        if not moved <= _TOLERANCE.get(self._model.dtype, _TOLERANCE_16_BIT):
            raise UnsupportedModelError(
                f"{self._model.config.model_type}: the vector of a text changes by {moved:.2g} of its length when "
                "it is padded; such models are not supported"
            )


def length_groups(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in groups of similar length, each at most `max_tokens` when padded, or alone."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not groups or (len(groups[-1]) + 1) * longest > max_tokens:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups


def _finite(vector: Vector) -> Vector | ForwardError:
    if np.isfinite(vector).all():
        return vector
    return ForwardError("internal error: the vector of this text is not finite")


def _mean(states: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    return (states * mask[:, :, None]).sum(1) / lengths[:, None]


def _cls(states: Tensor, _mask: Tensor, _lengths: Tensor) -> Tensor:
    return states[:, 0]


def _last(states: Tensor, _mask: Tensor, lengths: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), lengths - 1]


# Hidden states `[rows, tokens, width]`, mask `[rows, tokens]` and lengths `[rows]` to vectors `[rows, width]`.
_POOLINGS: dict[PoolingName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _cls, "last": _last}
