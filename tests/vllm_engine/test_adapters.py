"""Adapters and the model itself side by side in vLLM; each answers as the model with the adapter merged into it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError, UnknownModelError
from chat_engine.reading.request_parser import WireRequest
from chat_engine.serving import Serving, serve
from tests.chat_engine.builders import WAIT, Inbox
from tests.chat_engine.lora import make_adapter, merged, write_adapter
from tests.vllm_engine.conftest import TINY, settings, vllm_settings

PROMPTS = ["Hello!", "What is the capital of France?", "Count to ten."]
GREEDY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
SEEDS = {"sql": 1, "org/poet-8": 2, "third": 3}
BOTH_SLOTS = ("sql", "org/poet-8")


class Numbered:
    """Ids of requests."""

    count = 0


def submit(serving: Serving, text: str, adapter: str | None = None, **parameters: object) -> Inbox:
    Numbered.count += 1
    wire = WireRequest(
        id=f"a{Numbered.count}",
        messages=json.dumps([{"role": "user", "content": text}]).encode(),
        sampling_parameters=json.dumps({**GREEDY, **parameters}).encode(),
        adapter=None if adapter is None else adapter.encode(),
    )
    inbox = Inbox()
    serving.engine.submit(serving.parser.parse(wire), inbox)
    return inbox


def answers(serving: Serving, *adapters: str | None, prompts: list[str] = PROMPTS) -> list[list[str]]:
    """Of each adapter to each prompt, all side by side."""
    inboxes = [[submit(serving, prompt, adapter) for prompt in prompts] for adapter in adapters]
    assert all(inbox.ended.wait(WAIT) for row in inboxes for inbox in row)
    return [[inbox.text for inbox in row] for row in inboxes]


def with_adapters(adapters: dict[str, str], **vllm: object) -> EngineConfig:
    config = vllm_settings(max_model_len=512)
    block = {**config.vllm, "enable_lora": True, **vllm}
    return settings(engine="vllm", vllm=block, adapters=adapters, max_sequences=16, max_model_len=512)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(root / str(seed), seed) for name, seed in SEEDS.items()}


@pytest.fixture(scope="module")
def adapted(folders: dict[str, Path]) -> Iterator[Serving]:
    """With fewer places in vLLM than there are adapters, so that they take turns."""
    serving = serve(with_adapters({name: str(path) for name, path in folders.items()}, max_loras=2), lambda: None)
    yield serving
    serving.engine.close()


def native(model: Path, *, prompts: list[str] = PROMPTS) -> list[str]:
    """What the native engine answers with a checkpoint, in float32."""
    serving = serve(settings(model=str(model), threads=1, max_model_len=512, max_step_tokens=64), lambda: None)
    try:
        return answers(serving, None, prompts=prompts)[0]
    finally:
        serving.engine.close()


def test_each_answers_as_the_model_with_its_weights_merged_and_the_model_as_without_any(
    adapted: Serving, folders: dict[str, Path], native_serving: Serving, tmp_path: Path
) -> None:
    base, *others = answers(adapted, None, *SEEDS)
    assert base == answers(native_serving, None)[0]
    assert len({tuple(texts) for texts in [base, *others]}) == 1 + len(SEEDS)
    for name, texts in zip(SEEDS, others, strict=True):
        assert texts == native(merged(folders[name], tmp_path / str(SEEDS[name]))), name


def test_they_run_in_one_batch(adapted: Serving) -> None:
    before = adapted.engine.stats().steps
    alone = [answers(adapted, name, prompts=PROMPTS[:1]) for name in (None, *BOTH_SLOTS)]
    one_by_one = adapted.engine.stats().steps - before
    together = answers(adapted, None, *BOTH_SLOTS, prompts=PROMPTS[:1])
    side_by_side = adapted.engine.stats().steps - before - one_by_one
    assert together == [texts for one in alone for texts in one]
    assert side_by_side < one_by_one / 2


def test_the_prefix_cache_does_not_mix_them(adapted: Serving) -> None:
    prompt = "Tell me of the sea and of those who sail on it. " * 8
    cached = {}
    texts = {}
    for name in (None, *SEEDS, None, *SEEDS):
        inbox = submit(adapted, prompt, name)
        assert inbox.ended.wait(WAIT)
        cached.setdefault(name, []).append(inbox.last.num_cached_tokens)
        texts.setdefault(name, set()).add(inbox.text)
    for first, second in cached.values():
        assert (first, second > 64) == (0, True)
    assert [len(found) for found in texts.values()] == [1] * len(texts)
    assert len(set.union(*texts.values())) == len(texts)


def test_an_unknown_one_is_refused_by_its_name_and_those_that_there_are(adapted: Serving) -> None:
    with pytest.raises(UnknownModelError) as caught:
        submit(adapted, "Hello!", "nonesuch")
    assert caught.value.field == "adapter"
    assert "'nonesuch'; there are org/poet-8, sql, third" in str(caught.value)


def test_constrained_answers_and_logprobs_work_with_them(adapted: Serving) -> None:
    inbox = submit(adapted, "Say a.", "sql", ignore_eos=False, structured_outputs={"regex": "[a-f]{4}x"}, logprobs=1)
    assert inbox.ended.wait(WAIT)
    assert inbox.text[-1] == "x"
    assert len(inbox.text) == 5
    assert any(event.logprobs for event in inbox.events)


@pytest.mark.parametrize("name", [None, "sql"])
def test_the_prompt_is_scored_with_them_as_with_merged_weights(
    adapted: Serving, folders: dict[str, Path], tmp_path: Path, name: str | None
) -> None:
    """Whoever asks for it must not end vLLM either."""

    def scores(serving: Serving, adapter: str | None) -> list[float]:
        inbox = submit(serving, "What is the capital of France?", adapter, prompt_logprobs=0)
        assert inbox.ended.wait(WAIT)
        return [token.logprob for event in inbox.events for token in event.prompt_tokens if token.logprob is not None]

    model = merged(folders[name], tmp_path / "merged") if name else TINY
    native = serve(settings(model=str(model), threads=1, max_model_len=512, max_step_tokens=64), lambda: None)
    try:
        assert scores(adapted, name) == pytest.approx(scores(native, None), abs=5e-3)
    finally:
        native.engine.close()


def refusal(adapters: dict[str, str], **vllm: object) -> str:
    with pytest.raises(ConfigError) as caught:
        serve(with_adapters(adapters, **vllm), lambda: None)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_rank_above_the_limit_ends_the_start_with_the_one_that_is_enough(tmp_path: Path) -> None:
    sentence = refusal({"wide": str(make_adapter(tmp_path / "wide", 1, rank=40))})
    assert sentence == ('adapters.wide: its rank 40 is above max_lora_rank 16; set "vllm": {"max_lora_rank": 64}')


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_alpha": "much"}, "adapters.odd: "),
    ],
)
def test_what_vllm_cannot_do_with_an_adapter_ends_the_start(
    tmp_path: Path, written: dict[str, object], part: str
) -> None:
    assert part in refusal({"odd": str(make_adapter(tmp_path / "odd", 1, **written))})


def test_one_of_another_base_model_ends_the_start_before_the_load(tmp_path: Path) -> None:
    factors = load_file(make_adapter(tmp_path / "right", 1) / "adapter_model.safetensors")
    wider = {name: weight.repeat(1, 2) if "lora_A" in name else weight for name, weight in factors.items()}
    wrong = write_adapter(tmp_path / "wrong", {name: weight.contiguous() for name, weight in wider.items()})
    sentence = refusal({"wrong": str(wrong)})
    assert sentence.startswith("adapters.wrong: it is for another base model (tiny-chat): layers.0.")


def test_what_shows_only_in_vllm_ends_the_start_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> bool:
        raise ValueError("no such\nthing")

    from vllm.v1.engine.async_llm import AsyncLLM

    monkeypatch.setattr(AsyncLLM, "add_lora", fails)
    sentence = refusal({"sql": str(make_adapter(tmp_path / "sql", 1))})
    assert sentence == "adapters.sql: vLLM cannot load it: no such thing"
