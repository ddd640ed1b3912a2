from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from chat_engine.prompt import PromptEncoder
from tests.chat_engine.builders import byte_fallback_tokenizer, byte_level_tokenizer, examples

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
