from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError, UnsupportedModelError
from chat_engine.reading.chat_parameters import ChatParameters
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.reading.prompt_parser import PromptParser
from chat_engine.reading.tokenizer_loader import PROBES
from tests.chat_engine.builders import byte_fallback_tokenizer, byte_level_tokenizer, examples, make_config
from tests.chat_engine.families import FAMILIES

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
BYTE_LEVEL = PromptEncoder(PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer()))


@examples(100)
@given(text=TEXT)
def test_a_text_survives_the_way_there_and_back(text: str) -> None:
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("special", [False, True])
@examples(50)
@given(text=TEXT)
def test_ids_are_those_of_the_plain_way_to_encode(text: str, special: bool) -> None:
    encoder = PromptEncoder(PreTrainedTokenizerFast(tokenizer_object=byte_fallback_tokenizer()))
    plain = encoder.backend.encode(text, add_special_tokens=special)
    assert list(encoder.encode(text, add_special_tokens=special)) == plain.ids


def test_special_tokens_are_part_of_the_text_and_ids_without_text_are_none() -> None:
    assert BYTE_LEVEL.decode([1, *BYTE_LEVEL.encode("hi", add_special_tokens=False), 2, 100_000]) == "<s>hi</s>"
    assert BYTE_LEVEL.decode([]) == ""


# What a checkpoint's files say.


def saved(folder: Path, tokenizer: Tokenizer, **config: object) -> EngineConfig:
    """Tokenizer files with these entries in tokenizer_config.json."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return make_config(model=str(folder))


CODE = "(hello) (world)\n\n"


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("family", ["gpt2", "llama3", "deepseek", "llama2", "mistral", "gemma"])
def test_texts_are_split_as_tokenizer_json_has_it_whatever_class_is_named(
    kind: str, family: str, tmp_path: Path
) -> None:
    tokenizer = FAMILIES[family]()
    encoder = PromptEncoder.load(saved(tmp_path, tokenizer, tokenizer_class=kind, chat_template=TEMPLATE))
    for text in (CODE, "  the quick\n\n\tfox 12345 你好 é", *PROBES):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert list(encoder.encode(text, add_special_tokens=False)) == expected


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("family", ["llama3", "llama2"])
def test_a_text_begins_as_tokenizer_json_has_it(kind: str, family: str, tmp_path: Path) -> None:
    tokenizer = FAMILIES[family]()
    encoder = PromptEncoder.load(saved(tmp_path, tokenizer, tokenizer_class=kind))
    assert list(encoder.encode(CODE, add_special_tokens=True)) == tokenizer.encode(CODE).ids


def test_tokens_that_only_the_settings_know_keep_their_ids(tmp_path: Path) -> None:
    tokenizer = FAMILIES["llama3"]()
    size = tokenizer.get_vocab_size()
    config = saved(tmp_path, tokenizer, tokenizer_class="GPT2Tokenizer", pad_token="<|pad|>")
    assert PromptEncoder.load(config).backend.token_to_id("<|pad|>") >= size


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "eos", "ends"),
    [
        (TEMPLATE, "<|endoftext|>", {"<|endoftext|>", "<|im_end|>"}),
        (TEMPLATE, None, {"<|im_end|>"}),
        (None, "<|im_end|>", {"<|im_end|>"}),
        ("{% for m in messages %}{{ m.content }} <|im_end|>{% endfor %}", None, {"<|im_end|>"}),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}", None, set()),
    ],
)
def test_ends_are_what_the_tokenizer_and_the_template_say(
    template: str | None, eos: str | None, ends: set[str], tmp_path: Path
) -> None:
    encoder = PromptEncoder.load(saved(tmp_path, FAMILIES["gpt2"](), chat_template=template, eos_token=eos))
    assert {encoder.token(token_id) for token_id in encoder.end_ids} == ends


def test_the_templates_own_tokens_are_special_whatever_the_settings_say(tmp_path: Path) -> None:
    tokenizer = FAMILIES["gpt2"]()
    encoder = PromptEncoder.load(saved(tmp_path, tokenizer, chat_template=TEMPLATE, split_special_tokens=True))
    ids = encoder.encode("<|im_start|>user", add_special_tokens=False)
    assert ids[0] == tokenizer.token_to_id("<|im_start|>")


def test_a_template_whose_tokens_have_no_embedding_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = FAMILIES["gpt2"]()
    encoder = PromptEncoder.load(saved(tmp_path, tokenizer, chat_template=TEMPLATE))
    size = tokenizer.get_vocab_size()
    encoder.check_vocabulary(size)
    with pytest.raises(UnsupportedModelError, match=r"the chat template writes the token '<\|im_start\|>' \(id 315\)"):
        encoder.check_vocabulary(tokenizer.token_to_id("<|im_start|>"))
    encoder.check_vocabulary(tokenizer.token_to_id("<|endoftext|>"))
    assert "no embedding for, refused in prompts: <|endoftext|>" in caplog.text


def test_a_beginning_without_an_embedding_is_refused(tmp_path: Path) -> None:
    tokenizer = FAMILIES["llama3"]()
    encoder = PromptEncoder.load(saved(tmp_path, tokenizer))
    with pytest.raises(UnsupportedModelError, match=r"the post-processor of tokenizer\.json writes the token"):
        encoder.check_vocabulary(tokenizer.token_to_id("<|begin_of_text|>"))


def test_a_token_without_an_embedding_is_refused_in_a_text_and_is_text_in_a_message(tmp_path: Path) -> None:
    tokenizer = FAMILIES["gpt2"]()
    encoder = PromptEncoder.load(saved(tmp_path, tokenizer, chat_template=TEMPLATE))
    beyond = tokenizer.token_to_id("<|endoftext|>")
    parser = PromptParser(encoder, make_config(), beyond, "prompt_token_ids")
    with pytest.raises(
        InvalidArgumentError, match=rf"text_input: .* the token '<\|endoftext\|>' in it \(id {beyond}\)"
    ):
        parser.parse(None, b"what is <|endoftext|>?", None)
    messages = json.dumps([{"role": "user", "content": "what is <|endoftext|>?"}]).encode()
    prompt = parser.parse(messages, None, None)
    assert max(prompt.ids) < beyond
    assert "what is <|endoftext|>?" in prompt.text


def test_a_final_message_is_continued(tmp_path: Path) -> None:
    encoder = PromptEncoder.load(saved(tmp_path, FAMILIES["gpt2"](), chat_template=TEMPLATE))
    parser = PromptParser(encoder, make_config(), 400, "prompt_token_ids")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the quick"}]
    raw = json.dumps(turns).encode()
    chat = ChatParameters(continue_final_message=True)
    assert parser.parse(raw, None, None, chat).text.endswith("assistant\nthe quick")
    with pytest.raises(InvalidArgumentError, match="continue_final_message: cannot be combined with"):
        parser.parse(raw, None, None, chat.with_options({"add_generation_prompt": True}))
    with pytest.raises(InvalidArgumentError, match="continue_final_message: only for messages"):
        parser.parse(None, b"x", None, chat)
