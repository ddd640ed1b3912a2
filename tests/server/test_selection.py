from __future__ import annotations

import json

import pytest

from tests.server.checkpoints import OTHER, SINGLE, sharded
from triton_chat_server.errors import CommandError
from triton_chat_server.fetch.files import RemoteFile, safe
from triton_chat_server.fetch.selection import Selection, select

ENCODER = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.txt", "sentencepiece.bpe.model", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
}  # fmt: skip


def chosen(names: set[str], index: object = None, *, convert: bool = False) -> Selection:
    files = {name: RemoteFile(name, 10) for name in names}
    return select(files, lambda path: json.dumps(index).encode(), convert=convert)


def names(selection: Selection) -> set[str]:
    return {file.path for file in selection.files}


def test_an_encoder_of_sentence_transformers() -> None:
    others = {"2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "openvino/openvino_model.xml", "README.md"}
    assert names(chosen(ENCODER | others)) == ENCODER


def test_a_causal_lm() -> None:
    assert names(chosen(set(SINGLE) | set(OTHER))) == set(SINGLE)


def test_one_file_goes_before_an_index() -> None:
    both = set(sharded()) | {"model.safetensors"}
    assert names(chosen(both)) == set(SINGLE)


def test_templates_beside_the_main_one() -> None:
    files = {"config.json", "model.safetensors", "additional_chat_templates/tools.jinja", "examples/other.jinja"}
    assert names(chosen(files)) == files - {"examples/other.jinja"}


def test_names_that_lead_out_are_never_chosen() -> None:
    odd = {"..\\a.json", ".triton-chat-fetch.json", ".hidden.txt", "config.json", "model.safetensors"}
    assert names(chosen(odd)) == {"config.json", "model.safetensors"}
    with pytest.raises(CommandError, match="which does not exist"):
        chosen(
            {"config.json", "model.safetensors.index.json", "/x.safetensors"}, {"weight_map": {"a": "/x.safetensors"}}
        )
    with pytest.raises(CommandError, match="which does not exist"):
        chosen({"config.json", "model.safetensors.index.json", "x.py"}, {"weight_map": {"a": "x.py"}})
    part = ".triton-chat-fetch/x.safetensors"
    with pytest.raises(CommandError, match="which does not exist"):
        chosen({"config.json", "model.safetensors.index.json", part}, {"weight_map": {"a": part}})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.json", True),
        ("1_Pooling/a", True),
        ("", False),
        ("/a", False),
        ("a/../../b", False),
        ("a\0b", False),
        (".a", False),
        ("a/.b/c", False),
    ],
)
def test_safe(path: str, expected: bool) -> None:
    assert safe(path) == expected


def test_what_a_conversion_makes() -> None:
    assert chosen({"config.json", "model.safetensors"}).converted == []
    single = chosen({"config.json", "pytorch_model.bin"}, convert=True)
    assert (single.bins, single.converted, single.bin_size) == (("pytorch_model.bin",), ["model.safetensors"], 10)
    index = {"weight_map": {"a": "two.bin", "b": "one.bin", "c": "two.bin"}}
    several = chosen({"config.json", "pytorch_model.bin.index.json", "one.bin", "two.bin"}, index, convert=True)
    assert several.bins == ("one.bin", "two.bin")
    assert several.converted == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    ]  # fmt: skip
    assert (several.size, several.bin_size) == (40, 20)
