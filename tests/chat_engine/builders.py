"""Builders of the engine's tests: tiny tokenizers and models, a runner that needs no torch, a driver by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from chat_engine.config import EngineConfig
from chat_engine.native.engine import NativeEngine
from chat_engine.native.generation_defaults import GenerationDefaults
from chat_engine.native.runner import Row, RunnerLimits
from chat_engine.native.sampler import Sampled, SamplingState
from chat_engine.native.token_rules import TokenRules
from chat_engine.request import ChatRequest, FinishReason, SamplingParams, TokenEvent

WAIT = 20.0  # seconds until a thread that should have moved counts as stuck
EOS = 2


def examples(count: int, **more: object) -> settings:
    """Hypothesis, the same examples at every run."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=checks, **more
    )


# Tokenizers.


def byte_level_tokenizer(extra: Iterable[str] = ()) -> Tokenizer:
    """Byte-level BPE as in GPT-2: three special tokens, one token per byte, and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("Ġw", "o"), ("i", "n"), ("e", "r"), ("Ġ", "t")]
    names = ["<pad>", "<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", *extra])
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """SentencePiece's manner, as in Llama 2: words begin with U+2581, unknown characters are `<0x..>` bytes."""
    pieces = ["\u2581", "\u2581hello", "\u2581wor", "ld", "a", "b", "c", "e", "h", "l", "o", "中", "."]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def letter_tokenizer(vocab_size: int = 128) -> Tokenizer:
    """Token i is one letter of its own, so that any ids of a random model make visible text."""
    names = ["<pad>", "<s>", "</s>", *(chr(0x100 + i) for i in range(3, vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    return tokenizer


# Requests.


def make_request(
    request_id: str, prompt: Sequence[int] = (5, 6, 7), max_tokens: int = 8, seed: int = 0, **sampling: object
) -> ChatRequest:
    params = SamplingParams.model_validate({"temperature": 0.0, **sampling})
    return ChatRequest(id=request_id, prompt_ids=tuple(prompt), sampling=params, max_tokens=max_tokens, seed=seed)


class Inbox:
    """A sink that keeps what comes, and says when the end has come."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.ended = threading.Event()

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        if event.finish_reason is not None:
            self.ended.set()

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def ends(self) -> list[FinishReason]:
        return [event.finish_reason for event in self.events if event.finish_reason is not None]

    @property
    def last(self) -> TokenEvent:
        assert self.ends, "the request has not ended"
        assert self.events[-1].finish_reason is not None, "something came after the end"
        assert len(self.ends) == 1, "the request ended more than once"
        return self.events[-1]

    @property
    def output(self) -> int:
        return self.last.num_output_tokens


# A runner without a model.


@dataclasses.dataclass
class Done:
    """A step that was computed when it was started."""

    made: list[Sampled | None]
    stale: list[int] = dataclasses.field(default_factory=list)

    def results(self) -> list[Sampled | None]:
        return self.made


class HashRunner:
    """The next token is a hash of all before it, read back through the blocks: wrong accounting changes answers.

    Tokens are kept where the KV would be. `before_step` is called first in each step; it may block or raise.
    """

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        max_step_tokens: int = 16,
        max_model_len: int = 64,
        vocab_size: int = 128,
        eos_ids: Iterable[int] = (EOS,),
        eos_every: int = 0,
    ) -> None:
        self.longest_pass = 0.0
        self.limits = RunnerLimits(max_model_len, max_step_tokens, block_size, num_blocks, vocab_size)
        self.defaults = GenerationDefaults(frozenset(eos_ids), {}, None, TokenRules())
        self.before_step: Callable[[list[Row]], None] = lambda rows: None
        self.steps: list[list[Row]] = []
        self._eos_every = eos_every
        self._last: list[Sampled | None] = []
        self._slots: dict[tuple[int, int], int] = {}

    runs_ahead = False

    def start(self, rows: list[Row]) -> Done:
        rows = [self._known(row) for row in rows]
        self._last = self.run(rows)
        return Done(self._last)

    def _known(self, row: Row) -> Row:
        """With the token of the step before, where the row waits for it."""
        return (
            row
            if row.follows is None
            else dataclasses.replace(row, tokens=[self._last[row.follows].token_id], follows=None)
        )

    def run(self, rows: list[Row]) -> list[Sampled | None]:
        self.before_step(rows)
        self.steps.append(rows)
        assert sum(len(row.tokens) for row in rows) <= self.limits.max_step_tokens
        for row in rows:
            for offset, token in enumerate(row.tokens):
                self._slots[self._slot(row, row.length - len(row.tokens) + offset)] = token
        return [self._next(row) if row.sampling else None for row in rows]

    def next_token(self, tokens: Sequence[int]) -> int:
        digest = hashlib.blake2b(repr(list(tokens)).encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "little")
        if self._eos_every and number % self._eos_every == 0:
            return EOS
        return 3 + number % (self.limits.vocab_size - 3)

    def answer(self, request: ChatRequest) -> list[int]:
        """What a request gets, computed without an engine."""
        tokens = list(request.prompt_ids)
        stops = set(request.sampling.stop_token_ids) | (set() if request.sampling.ignore_eos else self.defaults.eos_ids)
        while len(tokens) < len(request.prompt_ids) + request.max_tokens:
            tokens.append(self.next_token(tokens))
            if tokens[-1] in stops:
                break
        return tokens[len(request.prompt_ids) :]

    def _next(self, row: Row) -> Sampled:
        tokens = [self._slots[self._slot(row, position)] for position in range(row.length)]
        known = row.length - row.guesses
        chosen = [Sampled(self.next_token(tokens[:end]), None) for end in range(known, row.length + 1)]
        return dataclasses.replace(chosen[0], behind_guesses=tuple(chosen[1:]))

    def _slot(self, row: Row, position: int) -> tuple[int, int]:
        size = self.limits.block_size
        return row.blocks[position // size], position % size


def make_config(**settings_: object) -> EngineConfig:
    return EngineConfig.model_validate({"model": "fake", "max_sequences": 4, **settings_})


def hand_engine(runner: object, tokenizer: Tokenizer | None = None, **settings_: object) -> NativeEngine:
    """An engine without a thread."""
    return NativeEngine(make_config(**settings_), runner, tokenizer or letter_tokenizer())


def checked_step(engine: NativeEngine) -> bool:
    """A step, and the accounting after it."""
    went_on = engine.step()
    engine.cache.check([sequence.table for sequence in engine.scheduler.sequences])
    assert engine.cache.free + engine.cache.used == engine.cache.total
    return went_on


def run_out(engine: NativeEngine, limit: int = 5000) -> None:
    """Steps until nothing is left, and sees that everything was given back."""
    for _ in range(limit):
        if not checked_step(engine):
            break
    else:
        raise AssertionError("the engine does not come to an end")
    assert engine.cache.used == 0
    assert not engine.scheduler.sequences


def solo(engine_of: Callable[[], NativeEngine], request: ChatRequest) -> Inbox:
    """The request alone, in an engine of its own."""
    engine, inbox = engine_of(), Inbox()
    engine.submit(request, inbox)
    run_out(engine)
    return inbox


class Gate:
    """Lets steps of a `HashRunner` pass one by one: a step waits in `reached` until `open_` is called."""

    def __init__(self, runner: HashRunner) -> None:
        self._reached = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)
        self._free = threading.Event()
        runner.before_step = self._wait

    def reached(self) -> None:
        assert self._reached.acquire(timeout=WAIT)

    def pass_one(self) -> None:
        self._passes.release()

    def open(self) -> None:
        self._free.set()
        self._passes.release()

    def _wait(self, rows: list[Row]) -> None:
        self._reached.release()
        if not self._free.is_set():
            assert self._passes.acquire(timeout=WAIT)


# Tiny models.


def save_model(config: object, folder: Path, std: float = 0.35, seed: int = 0) -> Path:
    """Writes a randomly initialised decoder. Its weights are large, so that no two logits come near each other."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, std)
    model.save_pretrained(folder)
    return folder


def reference_model(folder: Path):
    """The same checkpoint in transformers' own hands."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def state(seed: int = 0, prompt: Sequence[int] = (), output: Sequence[int] = (), **sampling: object) -> SamplingState:
    """One row's sampling state after `output` has been made."""
    stop_ids = frozenset(sampling.pop("stop_ids", ()))
    made = SamplingState.start(SamplingParams.model_validate(sampling), seed, stop_ids, tuple(prompt))
    for token in output:
        made.append(token)
    return made


def renamed(request: ChatRequest, request_id: str) -> ChatRequest:
    return dataclasses.replace(request, id=request_id)
