"""The beginnings of an induction circuit, which random weights would need thousands of steps to find.

A head of the first layer looks at the token before, and tells the next layers what that is. Heads of those look for a
place behind the same token as the current one, and say what stands there. So a name goes on as it did earlier in the
prompt, whatever name it is. Training makes it precise. The circuit is that of Olsson et al., "In-context Learning and
Induction Heads", 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from transformers import LlamaForCausalLM

MATCHING_LAYERS = (1, 2)
OFFSET = 0.15  # of all embeddings in one direction: what a head that only looks at positions can hold on to
PREVIOUS_SHARPNESS, PREVIOUS_LOUDNESS = 10.0, 0.1
MATCH_SHARPNESS, MATCH_LOUDNESS = 6.0, 0.25
FAST_PAIRS, SLOW_PAIRS_FROM = 4, 9  # of the rotary embedding: the fast tell neighbours apart, the slow see far


TWIN_SHARE = 0.8  # of the square of an embedding


def twins(vocabulary: Mapping[str, int]) -> list[tuple[int, int]]:
    """Ids of the tokens that are the same but for a leading space, with it and without it."""
    return sorted(
        (token, vocabulary[text[1:]]) for text, token in vocabulary.items() if text[0] == "Ġ" and text[1:] in vocabulary
    )


@torch.no_grad()
def begin_with_copying(model: LlamaForCausalLM, rope_theta: float, alike: Sequence[tuple[int, int]] = ()) -> None:
    """Writes the circuit into the first head of each group in the first three layers; the others stay random.

    Args:
        rope_theta: of the rotary embedding.
        alike: pairs of tokens, the first of which begins nearly as the second: a name is copied from the middle of a
            sentence to where no space stands before it.
    """
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    if alike:
        first_ids, second_ids = map(torch.tensor, zip(*alike, strict=True))
        own, shared = (1 - TWIN_SHARE) ** 0.5, TWIN_SHARE**0.5
        embeddings[first_ids] = own * embeddings[first_ids] + shared * embeddings[second_ids]
    width = embeddings.shape[1]
    size = int(model.config.head_dim or 0)
    directions = random_directions(width, width)
    now, before, constant = directions[:size], directions[size : 2 * size], directions[-1]
    share = OFFSET / math.sqrt(OFFSET**2 + width * model.config.initializer_range**2)
    embeddings.add_(OFFSET * constant)

    first = Head(model, layer=0, group=0)
    scale = math.sqrt(PREVIOUS_SHARPNESS * math.sqrt(size)) / (math.sqrt(width) * share)
    first.asks(scale * torch.outer(looking_back(size, 1, rope_theta), constant))
    first.offers(scale * torch.outer(looking_back(size, 0, rope_theta), constant))
    first.tells(now, PREVIOUS_LOUDNESS * before)

    slow = torch.tensor([*range(SLOW_PAIRS_FROM, size // 2), *range(size // 2 + SLOW_PAIRS_FROM, size)])
    scale = math.sqrt(MATCH_SHARPNESS)
    for layer in MATCHING_LAYERS:
        for group in range(int(model.config.num_key_value_heads or 0)):
            part = slice(group * len(slow), (group + 1) * len(slow))
            nothing = torch.zeros(size, width)
            head = Head(model, layer, group)
            head.asks(scale * nothing.index_copy(0, slow, now[part]))
            head.offers(scale * nothing.index_copy(0, slow, before[part]))
            said = random_directions(size, width)
            head.tells(said, MATCH_LOUDNESS * said)


class Head:
    """The first query head of a group, with the group's keys and values. All matrices are [head size, width]."""

    def __init__(self, model: LlamaForCausalLM, layer: int, group: int) -> None:
        self._attention = model.model.layers[layer].self_attn
        size, config = int(model.config.head_dim or 0), model.config
        heads_in_group = int(config.num_attention_heads or 0) // int(config.num_key_value_heads or 1)
        self._group = slice(group * size, (group + 1) * size)
        self._head = slice(group * heads_in_group * size, (group * heads_in_group + 1) * size)

    def asks(self, query: torch.Tensor) -> None:
        self._attention.q_proj.weight[self._head] = query

    def offers(self, key: torch.Tensor) -> None:
        self._attention.k_proj.weight[self._group] = key

    def tells(self, value: torch.Tensor, said: torch.Tensor) -> None:
        """Reads `value` where it looks, and writes it as `said`."""
        self._attention.v_proj.weight[self._group] = value
        self._attention.o_proj.weight[:, self._head] = said.T


def random_directions(number: int, width: int) -> torch.Tensor:
    """[number, width], orthonormal rows."""
    orthonormal: torch.Tensor = torch.linalg.qr(torch.randn(width, number))[0]
    return orthonormal.T


def looking_back(size: int, tokens: int, rope_theta: float) -> torch.Tensor:
    """A vector of one head that the rotary embedding turns so that it meets its like `tokens` tokens earlier."""
    angles = -tokens * rope_theta ** (-torch.arange(FAST_PAIRS) * 2 / size)
    vector = torch.zeros(size)
    vector[:FAST_PAIRS] = torch.cos(angles)
    vector[size // 2 : size // 2 + FAST_PAIRS] = torch.sin(angles)
    return vector
