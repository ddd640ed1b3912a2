"""`/v1/completions` by the `openai` package: prompts as text and as token ids, several of them, echo, logprobs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.openai_calls import TWO_WAYS, WAYS, Asker, Way
from triton_chat import ChatClient

PROMPT = "Triton is a server that"
CHINESE = "月亮是🌙"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
IGNORE_EOS: dict[str, Any] = {"extra_body": {"ignore_eos": True}}


def ids_of(engine: ChatClient, text: str) -> list[int]:
    return list(engine.tokenize(text=text).token_ids)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prompt", [PROMPT, CHINESE])
def test_the_text_is_the_engines(ask: Asker, engine: ChatClient, way: Way, prompt: str) -> None:
    answer = ask("completions", way, prompt=prompt, **GREEDY)
    expected = engine.generate(prompt=prompt, **GREEDY)
    assert (answer.only.text, answer.only.finish_reason) == (expected.text, expected.finish_reason)
    assert answer.tokens == (expected.num_input_tokens, expected.num_output_tokens)
    assert answer.id.startswith("cmpl-")


@pytest.mark.parametrize("way", TWO_WAYS)
def test_sixteen_tokens_by_default(ask: Asker, way: Way) -> None:
    answer = ask("completions", way, prompt=PROMPT, temperature=0, **IGNORE_EOS)
    assert (answer.only.finish_reason, answer.tokens[1]) == ("length", 16)


@pytest.mark.parametrize("way", TWO_WAYS)
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("prompt", [PROMPT, CHINESE])
def test_token_ids_are_the_same_as_their_text(
    ask: Asker, engine: ChatClient, way: Way, echo: bool, prompt: str
) -> None:
    by_text = ask("completions", way, prompt=prompt, echo=echo, **GREEDY)
    by_ids = ask("completions", way, prompt=ids_of(engine, prompt), echo=echo, **GREEDY)
    assert (by_ids.only, by_ids.tokens) == (by_text.only, by_text.tokens)
    assert by_text.only.text.startswith(prompt) is echo


@pytest.mark.parametrize("way", WAYS)
def test_several_prompts_with_several_answers(ask: Asker, engine: ChatClient, way: Way) -> None:
    prompts = [PROMPT, CHINESE, "Hello"]
    sampling: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_tokens": 8}
    expected = [
        engine.generate(prompt=prompt, **{**sampling, "seed": sampling["seed"] + choice})
        for prompt in prompts
        for choice in range(2)
    ]
    answer = ask("completions", way, prompt=prompts, n=2, best_of=2, **sampling)
    assert answer.texts == [result.text for result in expected]
    assert answer.tokens == (
        sum(result.num_input_tokens for result in expected[::2]),
        sum(result.num_output_tokens for result in expected),
    )
    by_ids = ask("completions", way, prompt=[ids_of(engine, prompt) for prompt in prompts], n=2, **sampling)
    assert by_ids.texts == answer.texts


@pytest.mark.parametrize("way", TWO_WAYS)
def test_stop(ask: Asker, engine: ChatClient, way: Way) -> None:
    text = engine.generate(prompt=PROMPT, **GREEDY).text
    answer = ask("completions", way, prompt=PROMPT, stop=[text[8:10]], **GREEDY)
    assert (answer.only.text, answer.only.finish_reason) == (text.partition(text[8:10])[0], "stop")


@pytest.mark.parametrize("way", TWO_WAYS)
@pytest.mark.parametrize(("prompt", "top"), [(PROMPT, 0), ("这是", 3)])
def test_logprobs_are_the_engines(ask: Asker, engine: ChatClient, way: Way, prompt: str, top: int) -> None:
    answer = ask("completions", way, prompt=prompt, logprobs=top, **GREEDY)
    expected = engine.generate(prompt=prompt, logprobs=top, **GREEDY)
    parts = answer.only.logprobs
    tokens = [token for part in parts for token in part.tokens]
    values = [value for part in parts for value in part.token_logprobs]
    offsets = [offset for part in parts for offset in part.text_offset]
    assert values == pytest.approx([entry.logprob for entry in expected.logprobs])
    assert len(tokens) == len(offsets) == expected.num_output_tokens
    for token, offset, entry in zip(tokens, offsets, expected.logprobs, strict=True):
        if "\ufffd" not in entry.token:  # a part of a character has no text of its own
            assert token == entry.token
            assert answer.only.text[offset:].startswith(token)
    alternatives = [tops for part in parts for tops in part.top_logprobs or []]
    assert len(alternatives) == (len(tokens) if top else 0)
    for token, value, tops in zip(tokens, values, alternatives, strict=False):
        assert tops[token] == pytest.approx(value)
        assert len(tops) >= top


@pytest.mark.parametrize("way", TWO_WAYS)
def test_fields_of_sampling(ask: Asker, engine: ChatClient, way: Way) -> None:
    """The same code as for chat, where each is tested alone."""
    (dot,) = ids_of(engine, ".")
    extra = {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 2, "stop_token_ids": [dot]}
    known: dict[str, Any] = {
        "temperature": 1.2,
        "top_p": 0.9,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "seed": 11,
        "max_tokens": 20,
    }
    answer = ask("completions", way, prompt=PROMPT, user="me", logit_bias={"300": -5}, extra_body=extra, **known)
    expected = engine.generate(prompt=PROMPT, logit_bias={300: -5}, **known, **extra)
    assert (answer.only.text, answer.only.finish_reason) == (expected.text, expected.finish_reason)
