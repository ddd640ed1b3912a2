"""Checkpoints with habits of published ones, each answering rightly through the gateway of one real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from tokenizers import Tokenizer

from local.gateway import LocalGateway
from tests.habits import CONTEXT, SERVED
from tests.integration.served import ServedTriton
from tests.integration.servers import GatewayFactory

QUESTION = "what is [PAD] for?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("habits")
    for name, build in SERVED.items():
        build(folder / name)
    return folder


@pytest.fixture(scope="module")
def gateway(able_to_serve: None, folder: Path) -> Iterator[LocalGateway]:
    settings = folder / "engine"
    settings.mkdir()
    for name in SERVED:
        given = {"model": str(folder / name), "threads": 1, "max_sequences": 2, "max_step_tokens": 64}
        (settings / f"{name}.json").write_text(json.dumps({**given, "dtype": "float32"}))
    env = {"TRITON_CHAT_ENGINE_CONFIG": str(settings), "TMPDIR": str(folder)}
    gateways = GatewayFactory(folder)
    with ServedTriton(folder, [*SERVED, "tokenizer"], ["--no-embeddings"], env) as server:
        try:
            yield gateways(server)
        finally:
            gateways.stop_all()


@pytest.fixture(scope="module")
def client(gateway: LocalGateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=gateway.openai_url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, model: str, question: str = "hello", **options: object) -> tuple[str, str]:
    """The answer, the same in one piece and in many, and why it ended."""
    messages = [{"role": "user", "content": question}]
    options = {"max_tokens": 8, "temperature": 0, **options}
    whole = client.chat.completions.create(model=model, messages=messages, **options).choices[0]
    chunks = client.chat.completions.create(model=model, messages=messages, stream=True, **options)
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == whole.message.content
    return whole.message.content, whole.finish_reason


def asked(gateway: LocalGateway, route: str, **body: object) -> dict[str, Any]:
    answer = httpx2.post(f"{gateway.url}/{route}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_token_without_an_embedding_is_text_in_a_message_and_refused_elsewhere(client: OpenAI) -> None:
    model = "a_pad_token_without_an_embedding"
    assert ask(client, model, QUESTION) == ("x" * 8, "length")
    with pytest.raises(openai.BadRequestError, match=r"no embedding for the token '\[PAD\]'") as refused:
        client.completions.create(model=model, prompt=QUESTION)
    assert refused.value.param == "prompt"
    assert ask(client, model) == ("x" * 8, "length")


def test_an_end_without_an_embedding_is_left_out(client: OpenAI) -> None:
    assert ask(client, "an_end_without_an_embedding", extra_body={"min_tokens": 1}) == ("x", "stop")


@pytest.mark.parametrize("stop", [None, ["<|im_end|>"], ["b<|im_end|>"]])
def test_an_end_that_only_the_tokenizer_knows_ends_an_answer(client: OpenAI, stop: list[str] | None) -> None:
    expected = "a" if stop == ["b<|im_end|>"] else "ab"
    assert ask(client, "an_end_that_only_the_tokenizer_knows", stop=stop) == (expected, "stop")


def test_a_special_token_as_stop_string_ends_an_answer_that_ignores_the_end(client: OpenAI) -> None:
    options = {"stop": ["<|im_end|>"], "extra_body": {"ignore_eos": True}}
    assert ask(client, "an_end_that_only_the_tokenizer_knows", **options) == ("ab", "stop")


def test_a_stretched_context_is_used(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="yarn", messages=[{"role": "user", "content": "x" * CONTEXT}], max_tokens=1000, temperature=0
    )
    assert answer.usage.completion_tokens == 1000
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {4 * CONTEXT} tokens"):
        ask(client, "yarn", max_tokens=4 * CONTEXT)


def test_the_text_reaches_a_template_that_knows_parts_only(gateway: LocalGateway) -> None:
    model = "a_template_of_parts"
    ids = asked(gateway, "tokenize", model=model, messages=[{"role": "user", "content": "who are you?"}])["tokens"]
    expected = "<|im_start|>user\nwho are you?<|im_end|>\n<|im_start|>assistant\n"
    assert asked(gateway, "detokenize", model=model, tokens=ids)["prompt"] == expected


def test_letters_that_are_added_tokens_are_themselves(client: OpenAI, gateway: LocalGateway) -> None:
    model = "letters_among_the_added_tokens"
    assert ask(client, model, "x") == ("schön", "stop")
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "x"}], temperature=0, logprobs=True
    )
    names = [entry.token for entry in answer.choices[0].logprobs.content]
    assert names == ["s", "c", "h", "ö", "n", "<｜end▁of▁sentence｜>"]
    ids = asked(gateway, "tokenize", model=model, prompt="schön ü õ", add_special_tokens=False)["tokens"]
    assert asked(gateway, "detokenize", model=model, tokens=ids)["prompt"] == "schön ü õ"


@pytest.mark.parametrize(("prompt", "answer"), [("🎉🎉", "🎉🎉"), ("🎉", "🎉🎉")])
def test_characters_of_bytes_are_whole_behind_a_prompt_of_bytes(client: OpenAI, prompt: str, answer: str) -> None:
    model = "bytes_over_the_border"
    result = client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0)
    assert result.choices[0].text == answer
    chunks = client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer
    echoed = client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0, echo=True)
    assert echoed.choices[0].text == prompt + answer


def test_texts_are_split_as_tokenizer_json_has_it(gateway: LocalGateway, folder: Path) -> None:
    model, text = "a_class_that_is_built_anew", "(hello) (world)\n\n"
    expected = Tokenizer.from_file(str(folder / model / "tokenizer.json")).encode(text).ids
    assert asked(gateway, "tokenize", model=model, prompt=text)["tokens"] == expected
