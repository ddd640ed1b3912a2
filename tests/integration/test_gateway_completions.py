"""`/v1/completions` by the `openai` package: prompts as text and as token ids, several of them, echo, logprobs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM

from local.options import DEFAULT_MODEL
from tests.integration.openai_calls import TWO_WAYS, WAYS, Asker, Way
from triton_chat import ChatClient

PROMPT = "I am tiny-chat, a"
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
@pytest.mark.parametrize(("prompt", "top"), [(PROMPT, 0), ("我是", 3)])
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
@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("prompt", [PROMPT, "这是月亮🌙吗？"])
def test_echoed_logprobs_are_the_engines(ask: Asker, engine: ChatClient, way: Way, as_ids: bool, prompt: str) -> None:
    given = ids_of(engine, prompt) if as_ids else prompt
    answer = ask("completions", way, prompt=given, echo=True, logprobs=2, **GREEDY)
    expected = engine.generate(prompt=prompt, logprobs=2, prompt_logprobs=2, **GREEDY)
    parts = answer.only.logprobs
    tokens, values, tops, offsets = (
        [value for part in parts for value in getattr(part, name)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    )
    entries = [*expected.prompt_logprobs, *expected.logprobs]
    assert answer.only.text == prompt + expected.text
    assert (values[0], tops[0]) == (None, None)
    assert values[1:] == pytest.approx([entry.logprob for entry in entries[1:]], abs=1e-3)
    for token, value, top, offset, entry in zip(tokens, values, tops, offsets, entries, strict=True):
        if "\ufffd" not in entry.token and offset < len(answer.only.text):  # no part of a character, no end token
            assert token == entry.token
            assert answer.only.text[offset:].startswith(token)
        assert value is None or (top[token] == value and len(top) >= 2)


def test_the_likelihood_of_a_continuation_as_evaluations_ask_for_it(ask: Asker, engine: ChatClient) -> None:
    """lm-eval's: context and continuation as token ids, one token more, which it drops. HELM's: no token more."""
    pairs = [("Who are you? ", "I am a server"), ("月亮是", "🌙"), ("def f(x):", "\n    return x")]
    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
    for context, continuation in pairs:
        first, second = ids_of(engine, context), ids_of(engine, continuation)
        with torch.inference_mode():
            rows = model(torch.tensor([first + second])).logits[0].log_softmax(-1)[len(first) - 1 : -1]
        likelihood = sum(row[token].item() for row, token in zip(rows, second, strict=True))
        is_greedy = rows.argmax(-1).tolist() == second
        for max_tokens, end in ((1, -1), (0, None)):
            fields: dict[str, Any] = {
                "echo": True,
                "logprobs": 1,
                "max_tokens": max_tokens,
                "temperature": 0,
                "seed": 1234,
            }
            (logprobs,) = ask("completions", prompt=[first + second], **fields).only.logprobs
            values, tops = logprobs.token_logprobs[len(first) : end], logprobs.top_logprobs[len(first) : end]
            assert sum(values) == pytest.approx(likelihood, abs=1e-3)
            assert all(value == max(top.values()) for value, top in zip(values, tops, strict=True)) is is_greedy


def test_prompt_logprobs_and_token_ids_in_vllms_shape(client: OpenAI, engine: ChatClient) -> None:
    extra = {"prompt_logprobs": 1, "return_token_ids": True}
    ids = ids_of(engine, PROMPT)
    expected = engine.generate(prompt=PROMPT, prompt_logprobs=1, return_token_ids=True, **GREEDY)
    choice = client.completions.create(model="chat", prompt=PROMPT, extra_body=extra, **GREEDY).choices[0].to_dict()
    assert choice["prompt_token_ids"] == ids == list(expected.prompt_token_ids)
    assert choice["token_ids"] == list(expected.token_ids)
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for found, entry in zip(others, expected.prompt_logprobs[1:], strict=True):
        own = found[str(entry.token_id)]
        assert own["logprob"] == pytest.approx(entry.logprob, abs=1e-3)
        assert (own["rank"], own["decoded_token"]) == (entry.rank, entry.token)
        assert len(found) == (1 if entry.rank == 1 else 2)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_token_ids_in_a_stream(client: OpenAI, engine: ChatClient, endpoint: str) -> None:
    fields: dict[str, Any] = {"model": "chat", "stream": True, "extra_body": {"return_token_ids": True}, **GREEDY}
    if endpoint == "chat":
        messages = [{"role": "user", "content": "Who are you?"}]
        chunks = [chunk.to_dict() for chunk in client.chat.completions.create(messages=messages, **fields)]
        prompts = [chunk.get("prompt_token_ids") for chunk in chunks]
        expected = engine.generate(messages, return_token_ids=True, **GREEDY)
    else:
        chunks = [chunk.to_dict() for chunk in client.completions.create(prompt=PROMPT, **fields)]
        prompts = [chunk["choices"][0].get("prompt_token_ids") for chunk in chunks]
        expected = engine.generate(prompt=PROMPT, return_token_ids=True, **GREEDY)
    assert prompts == [list(expected.prompt_token_ids), *[None] * (len(chunks) - 1)]
    made = [token_id for chunk in chunks for token_id in chunk["choices"][0].get("token_ids") or ()]
    assert made == list(expected.token_ids)


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
