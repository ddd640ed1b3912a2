"""A sampling parameter is defined once on each side of the wire, and a limit of the engine nowhere but there."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from chat_engine.config import EngineConfig
from chat_engine.request import MAX_SEED
from chat_engine.request import SamplingParams as EngineParams
from chat_engine.request import StructuredOutputs as EngineStructuredOutputs
from chat_gateway.schemas.common import SEEDS
from chat_page.options import Sampling as PageParams
from embedder.config import EmbedderConfig
from local.options import ROOT
from tests.client.commands import run
from tests.client.fake_server import FakeTriton
from triton_chat.types import LogitBias, SamplingOptions, SamplingParams, Stop, StructuredOutputs, TokenIds

# --- A made-up parameter at each door ---------------------------------------------------------------------------------

DEFINITIONS = {
    "model_repository/chat/1/chat_engine/request.py": (
        r"    skip_special_tokens: bool = .*\n",
        "    wobble: float = Field(0.0, ge=0)\n",
    ),
    "client/triton_chat/types.py": (
        r"    skip_special_tokens: bool \| None = .*\n",
        '    wobble: float | None = parameter("Made up.")\n',
    ),
    "ui/chat_page/options.py": (
        r"    repetition_penalty: float \| None = .*\n",
        '    wobble: float | None = _control("Wobble", "Made up")\n',
    ),
}
"""File -> the line after which the parameter is defined, and how. Nothing else is changed."""
PACKAGES = ("model_repository/chat/1", "client", "gateway", "ui")
NAMES_IT = {
    "engine": "wobble: unknown parameter (value 0.5); allowed are max_tokens, ",
    "sdk": "'wobble'",
    "gateway_chat": "wobble: is not a field of this request",
    "gateway_completions": "wobble: is not a field of this request",
    "page": "controls: temperature, ",
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the packages in which the definitions have the parameter."""
    root = tmp_path_factory.mktemp("extended")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name, (after, line) in DEFINITIONS.items():
        text, count = re.subn(after, lambda found, line=line: found[0] + line, (root / name).read_text())
        assert count == 1, name
        (root / name).write_text(text)
    return root


def doors(root: Path) -> dict[str, object]:
    paths = [*(root / package for package in PACKAGES), ROOT / "model_repository" / "vllm_model" / "1", ROOT]
    own = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_CHAT_")}
    env = own | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "doors.py"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_parameter_is_honoured_at_each_door_once_the_definitions_have_it(extended: Path) -> None:
    assert doors(extended) == dict.fromkeys([*NAMES_IT, "vllm_model"], 0.5)


def test_a_parameter_that_there_is_not_is_refused_by_name() -> None:
    found = doors(ROOT)
    assert found.pop("vllm_model") == 0.5  # for `chat` to refuse
    assert found.keys() == NAMES_IT.keys()
    for door, words in NAMES_IT.items():
        assert words in str(found[door])


def test_the_same_on_the_command_line(extended: Path) -> None:
    server = FakeTriton()
    try:
        unknown = run(server.url, "ask", "x", "--wobble", "0.5")
        known = run(server.url, "ask", "x", "--wobble", "0.5", PYTHONPATH=str(extended / "client"))
        assert (unknown.returncode, known.returncode) == (2, 0), known.stderr
        assert "--wobble" in unknown.stderr.decode()
        assert json.loads(server.next_request().tensor("sampling_parameters")[0]) == {"wobble": 0.5}
    finally:
        server.stop()


def unread(engine: Path, names: Sequence[str]) -> set[str]:
    """Which parameters no code of the engine reads; their definition is no use of them."""
    sources = [path.read_text(encoding="utf-8") for path in engine.rglob("*.py") if path.name != "request.py"]
    read = {node.attr for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return set(names) - read


def test_the_engine_uses_each_parameter(extended: Path) -> None:
    names = list(EngineParams.model_fields)
    assert unread(ROOT / "model_repository/chat/1/chat_engine", names) == set()
    assert unread(extended / "model_repository/chat/1/chat_engine", [*names, "wobble"]) == {"wobble"}


# --- The definitions agree --------------------------------------------------------------------------------------------

CLIENT_TYPES: Mapping[object, object] = {
    int: int | None,
    int | None: int | None,
    float: float | None,
    bool: bool | None,
    tuple[str, ...]: Stop | None,
    tuple[int, ...]: TokenIds | None,
    dict[int, float]: LogitBias | None,
    EngineStructuredOutputs | None: StructuredOutputs | None,
}
"""The engine's types -> the client's, for which None is not given."""
NOT_ON_THE_PAGE = {
    "min_tokens", "logit_bias", "stop", "stop_token_ids", "ignore_eos", "logprobs", "prompt_logprobs",
    "return_token_ids", "skip_special_tokens",
    "structured_outputs",  # the page has `response_format` for its schema
}  # fmt: skip


def types_of(definition: type) -> dict[str, Any]:
    hints = get_type_hints(definition)
    return {name: hint for name, hint in hints.items() if name != "model_config"}


def test_client_and_engine_define_the_same_parameters_of_the_same_types() -> None:
    engine = types_of(EngineParams)
    assert {name: CLIENT_TYPES[kind] for name, kind in engine.items()} == types_of(SamplingParams)
    assert list(engine) == [field.name for field in fields(SamplingParams)]


def test_keyword_arguments_are_typed_as_the_parameters() -> None:
    assert get_type_hints(SamplingOptions) == types_of(SamplingParams)


def test_the_page_has_each_parameter_or_leaves_it_out_on_purpose() -> None:
    page, client = types_of(PageParams), types_of(SamplingParams)
    assert page.items() <= client.items()
    assert client.keys() - page.keys() == NOT_ON_THE_PAGE


def test_the_gateway_knows_how_many_seeds_there_are() -> None:
    assert SEEDS == MAX_SEED + 1


def test_the_documentation_lists_the_parameters() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    rows = re.findall(
        r"^\| `sampling_parameters` \| BYTES \| JSON object: ([^;|]*)",
        "\n".join(p.read_text() for p in pages),
        re.MULTILINE,
    )
    assert set(rows) == {", ".join(f"`{name}`" for name in EngineParams.model_fields)}


# --- A limit has one home ---------------------------------------------------------------------------------------------

NO_SIZE_OF_A_REQUEST = {"max_sequences"}
OTHER_NUMBERS = {
    ("gateway/chat_gateway/settings.py", 16): "max_choices, a setting of the gateway",
    ("gateway/chat_gateway/settings.py", 1024): "the least max_body_bytes",
    ("gateway/chat_gateway/settings.py", 2048): "max_embedding_inputs, a setting of the gateway",
    ("gateway/chat_gateway/schemas/completions.py", 16): "OpenAI's default of max_tokens",
    ("gateway/chat_gateway/schemas/fields.py", 256): "the longest name of a model",
    ("gateway/chat_gateway/http/access.py", 256): "what the log shows of a caller's text",
    ("gateway/chat_gateway/http/metrics.py", 20): "a bucket of a histogram",
}
"""Numbers that are a limit's default by chance, and what they are."""


def limits() -> dict[int, str]:
    """The default of each size that a request may have -> its setting."""
    settings = {**EngineConfig.model_fields, **EmbedderConfig.model_fields}
    sizes = {name: field.default for name, field in settings.items() if name.startswith("max_")}
    return {size: name for name, size in sizes.items() if size is not None and name not in NO_SIZE_OF_A_REQUEST}


def numbers(node: ast.AST) -> Iterator[int]:
    """Whole numbers in a program, also those that it writes as a sum or a power."""
    parts = list(ast.walk(node))
    if isinstance(node, ast.expr) and all(isinstance(p, ast.BinOp | ast.Constant | ast.operator) for p in parts):
        value = eval(compile(ast.Expression(node), "", "eval"))
        if type(value) is int:
            yield value
        return
    for child in ast.iter_child_nodes(node):
        yield from numbers(child)


def test_no_default_of_a_limit_is_written_outside_of_the_engine() -> None:
    known = limits()
    assert {"max_logprobs", "max_stop_strings", "max_stop_length", "max_logit_bias"} <= set(known.values())
    found = {
        (str(path.relative_to(ROOT)), number): known[number]
        for folder in ("gateway", "client", "ui")
        for path in (ROOT / folder).rglob("*.py")
        for number in numbers(ast.parse(path.read_text(encoding="utf-8")))
        if number in known
    }
    assert found.keys() == OTHER_NUMBERS.keys()


@pytest.mark.parametrize(
    ("source", "expected"), [("x = 2 * 10", [20]), ("f(1 << 20, -20)", [1 << 20, 20]), ("'20'; 20.0", [])]
)
def test_numbers_are_found_however_they_are_written(source: str, expected: list[int]) -> None:
    assert list(numbers(ast.parse(source))) == expected
