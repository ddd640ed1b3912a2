"""Many long answers against a KV cache that holds a few of them: sequences are put back again and again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.runner import Runner
from chat_engine.request import ChatRequest, FinishReason
from tests.chat_engine.architectures import VOCAB
from tests.chat_engine.builders import HashRunner, Inbox, letter_tokenizer, make_config, make_request, save_model

STREAMS, TOKENS, CACHE = 24, 700, 4096
CONTEXT, BLOCK = 1024, 16


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    config = hf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder: Path = save_model(config, tmp_path_factory.mktemp("model"))
    limits = {"block_size": BLOCK, "kv_cache_tokens": CACHE, "max_sequences": STREAMS, "max_step_tokens": 512}
    return ModelRunner(make_config(model=str(folder), dtype="float32", device="cpu", **limits))


def requests() -> list[ChatRequest]:
    return [
        make_request(f"r{i}", prompt=range(3, 8 + i), max_tokens=TOKENS, seed=i, temperature=1.0, ignore_eos=True)
        for i in range(STREAMS)
    ]


def play(runner: Runner, requests: list[ChatRequest]) -> tuple[list[Inbox], NativeEngine]:
    engine = NativeEngine(make_config(max_sequences=STREAMS), runner, letter_tokenizer(VOCAB))
    inboxes = [Inbox() for _ in requests]
    with torch.no_grad():
        for request, inbox in zip(requests, inboxes, strict=True):
            engine.submit(request, inbox)
        while engine.step():
            pass
    assert engine.cache.used == 0
    assert [(inbox.last.finish_reason, inbox.output) for inbox in inboxes] == [(FinishReason.LENGTH, TOKENS)] * len(
        requests
    )
    return inboxes, engine


def test_24_streams_of_700_tokens_against_a_cache_of_4096_all_end() -> None:
    """Each token depends on all before it, as they stand in the cache."""
    runner = HashRunner(CACHE // BLOCK, BLOCK, max_step_tokens=512, max_model_len=CONTEXT, vocab_size=VOCAB)
    together, engine = play(runner, requests())
    assert engine.stats().preemptions > STREAMS
    tokenizer = letter_tokenizer(VOCAB)
    assert [inbox.text for inbox in together] == [tokenizer.decode(runner.answer(request)) for request in requests()]


def test_a_real_model_answers_them_as_if_each_were_alone(runner: ModelRunner) -> None:
    together, engine = play(runner, requests())
    assert engine.stats().preemptions > STREAMS
    for request, inbox in list(zip(requests(), together, strict=True))[::6]:
        (alone,), _ = play(runner, [request])
        assert inbox.text == alone.text, request.id
