"""Constrained answers for tests: grammars for the tiny tokenizers, and a runner with random logits that heeds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache

import torch
from tokenizers import Tokenizer

from chat_engine.answering.grammar import Grammars
from chat_engine.native.engine import NativeEngine
from chat_engine.native.masks import MaskFiller
from chat_engine.native.runner import Row
from chat_engine.native.sampler import Sampled, sample
from chat_engine.reading.structured import constraint_of, lenient_outputs
from chat_engine.request import ChatRequest, Constraint, SamplingParams, StructuredOutputs
from tests.chat_engine.builders import (
    EOS,
    HashRunner,
    Inbox,
    byte_level_tokenizer,
    make_config,
    run_out,
)

VOCAB = 300
TOOL = "<tool_call>"


@cache
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer([TOOL])


@cache
def grammars() -> Grammars:
    """Shared: each has a process of its own, which ends with this one."""
    return Grammars(tokenizer(), VOCAB, frozenset({EOS}), make_config(grammar_seconds=20.0))


class RandomRunner(HashRunner):
    """Logits are random numbers that depend on all tokens before; the next token is sampled from them as ever.

    With `favourite`, that token is all but certain wherever it is allowed.
    """

    def __init__(self, favourite: int | None = None, spread: float = 3.0, **limits: object) -> None:
        defaults = {"vocab_size": VOCAB, "max_model_len": 2000, "num_blocks": 2000, "max_step_tokens": 256}
        super().__init__(**{**defaults, **limits})
        self._masks = MaskFiller(VOCAB, torch.device("cpu"))
        self._favourite, self._spread = favourite, spread

    @torch.inference_mode()
    def run(self, rows: list[Row]) -> list[Sampled | None]:
        super().run(rows)
        states = [row.sampling for row in rows if row.sampling]
        if not states:
            return [None] * len(rows)
        with self._masks.filling(states) as masks:
            logits = torch.stack([self.logits(self._tokens(row)) for row in rows if row.sampling])
            made = iter(sample(logits, states, masks))
        return [next(made) if row.sampling else None for row in rows]

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        digest = hashlib.blake2b(repr(list(tokens)).encode(), digest_size=6).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        logits = self._spread * torch.randn(VOCAB, generator=generator)
        if self._favourite is not None:
            logits[self._favourite] += 1000
        return logits

    def _tokens(self, row: Row) -> list[int]:
        return [self._slots[self._slot(row, position)] for position in range(row.length)]


def constraint(**outputs: object) -> Constraint:
    return constraint_of(StructuredOutputs.model_validate(lenient_outputs(outputs)), make_config())


def guided_request(
    request_id: str = "r",
    outputs: dict[str, object] | None = None,
    *,
    prompt: Sequence[int] = (5, 6, 7),
    max_tokens: int = 400,
    seed: int = 0,
    **sampling: object,
) -> ChatRequest:
    params = SamplingParams.model_validate({"temperature": 1.0, **sampling})
    wanted = constraint(**outputs) if outputs else None
    return ChatRequest(request_id, tuple(prompt), params, max_tokens, seed, wanted)


def guided_engine(runner: RandomRunner | None = None, **settings: object) -> NativeEngine:
    """An engine without a thread. It is not to be closed: the grammars are shared."""
    return NativeEngine(make_config(**settings), runner or RandomRunner(), tokenizer(), grammars=grammars())


def answer(request: ChatRequest, runner: RandomRunner | None = None) -> Inbox:
    engine, inbox = guided_engine(runner), Inbox()
    engine.submit(request, inbox)
    run_out(engine)
    return inbox


def written(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
