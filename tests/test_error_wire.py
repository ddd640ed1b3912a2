"""What an error of our models is, is data all the way from the model to the caller. Its words are for people alone."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import vllm_contract
from chat_engine.errors import (
    FAMILY,
    ChatError,
    ContextLengthError,
    DrainingError,
    EngineFailedError,
    InvalidArgumentError,
    NotComputedError,
    OverloadedError,
    RequestCancelledError,
    UnknownModelError,
    from_wire,
    to_wire,
)
from chat_gateway.errors import from_client, renamed
from local.options import ROOT
from tests.chat_engine.builders import examples
from tests.chat_engine.test_parse import make_parser, messages, parse
from triton_chat import errors
from triton_chat.cli.exits import code_of

SDK: dict[type[ChatError], type[errors.TritonChatError]] = {
    ChatError: errors.EngineError,
    InvalidArgumentError: errors.InvalidRequestError,
    UnknownModelError: errors.ModelNotFoundError,
    ContextLengthError: errors.ContextLengthError,
    OverloadedError: errors.OverloadedError,
    DrainingError: errors.ServerStoppingError,
    RequestCancelledError: errors.RequestCancelledError,
    EngineFailedError: errors.EngineError,
    NotComputedError: errors.NotComputedError,
}
STATUSES = ("INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "CANCELLED", "INTERNAL", "DEADLINE_EXCEEDED", "UNKNOWN")
"""Those that our models have, the one that Triton makes of all of them between models, and two others."""
TRAPS = (
    " [code=overloaded]", "[code=stopping field=x row=1]", " field=y", " row=2]", "row 1: ", "messages[0].content: ",
    "]", "[", "=", "%", "%20", "%5D", ": ", " ", "\n", "\nAt:\n", "中文", "unknown model", "Exceeds maximum queue size",
    "tls", "socket closed", "the request was cancelled", "server is stopping", "failed to process the request",
)  # fmt: skip
"""Words that mean something to whoever reads them on the way, if anybody does."""

Seen = tuple[type[Exception], str, str | None, int | None]

texts = st.lists(st.sampled_from(TRAPS) | st.text(max_size=8), max_size=6).map("".join)
rows = st.none() | st.integers(0, 10**6)
made = st.builds(
    lambda kind, sentence, field, row: kind(sentence, field=field, row=row),
    st.sampled_from(FAMILY), texts, st.none() | texts, rows,
)  # fmt: skip


def seen(error: ChatError | errors.TritonChatError) -> Seen:
    return type(error), error.sentence, error.field, error.row


def all_below(kind: type[ChatError]) -> set[type[ChatError]]:
    return {kind}.union(*(all_below(below) for below in kind.__subclasses__()))


class TestTheWire:
    def test_both_sides_know_the_same_codes(self) -> None:
        assert set(FAMILY) == all_below(ChatError) == set(SDK)
        assert len({kind.code for kind in FAMILY}) == len(FAMILY)
        # Of the base nothing is known but that something has failed, and so is every code that the client lacks.
        known = {kind.code: there for kind, there in SDK.items() if kind is not ChatError}
        assert known == errors._OURS
        assert {there.code: there for there in known.values()} == known

    @examples(200)
    @given(made)
    def test_what_a_model_writes_another_model_reads(self, error: ChatError) -> None:
        read = from_wire(to_wire(error))
        assert read is not None
        assert (seen(read), str(read)) == (seen(error), str(error))

    @examples(200)
    @given(made, st.sampled_from(STATUSES))
    def test_what_a_model_writes_the_client_reads(self, error: ChatError, status: str) -> None:
        assume(not str(error).startswith("[request id: "))
        wire = to_wire(error)
        for read in (errors.from_text(wire), errors.from_status(status, wire, "host:8001")):
            assert seen(read) == (SDK[type(error)], *seen(error)[1:])
            assert str(read) == str(error)

    @examples(200)
    @given(made)
    def test_neither_an_id_nor_a_stack_disturbs(self, error: ChatError) -> None:
        read = errors.from_text(f"[request id: 5] {to_wire(error)}\n\nAt:\n  /models/chat/1/model.py(4): execute\n")
        assert seen(read) == (SDK[type(error)], *seen(error)[1:])

    @examples(100)
    @given(texts, texts)
    def test_a_text_of_somebody_else_makes_no_reader_fail(self, before: str, data: str) -> None:
        for text in (before, f"{before} [code={data}]", f"{before} [code=invalid_value {data}]"):
            assert isinstance(errors.from_text(text), errors.TritonChatError)
            assert isinstance(from_wire(text), ChatError | None)

    @examples(100)
    @given(texts)
    def test_a_field_holds_no_space_on_the_wire(self, field: str) -> None:
        data = to_wire(InvalidArgumentError("no", field=field)).rpartition(" [code=")[2]
        assert data.isascii()
        assert data.count(" ") == 1


def raise_sites() -> Iterator[ChatError]:
    """The errors that the code of our models makes; each value in a sentence is 7."""
    by_name = {kind.__name__: kind for kind in FAMILY}
    for path in sorted((ROOT / "model_repository").rglob("*.py")):
        if path.resolve() == path:  # not the links to what models share
            tree = ast.parse(path.read_text(encoding="utf-8"))
            constants = constants_of(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and node.args and (kind := by_name.get(name_of(node.func))):
                    field = "top_p" if any(keyword.arg == "field" for keyword in node.keywords) else None
                    yield kind(words(node.args[0], constants), field=field)


def constants_of(tree: ast.Module) -> dict[str, ast.expr]:
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return {name_of(node.targets[0]): node.value for node in assigned}


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def words(node: ast.expr, constants: Mapping[str, ast.expr]) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(words(part, {}) for part in parts)
        case ast.BinOp(left=left, right=right):
            return words(left, constants) + words(right, constants)
        case ast.Name(id=name) if name in constants:
            return words(constants[name], {})
        case _:
            return "7"


BAD_REQUESTS: tuple[dict[str, Any], ...] = (
    {"messages": None, "text_input": None},
    {"text_input": b"a", "prompt_token_ids": b"[1]"},
    {"text_input": b""},
    {"text_input": b"a\0b"},
    {"text_input": b"\xff"},
    {"text_input": b"x" * 60},
    {"text_input": b"x" * 101},
    {"prompt_token_ids": b"[1, true]"},
    {"prompt_token_ids": b"[300]"},
    {"prompt_token_ids": b"["},
    {"messages": b"[]"},
    {"messages": b'[{"role": "robot", "content": "x"}]'},
    {"messages": b'[{"role": "user", "content": 3}]'},
    {"messages": b'[{"role": "user", "content": "x", "a \\u4e2d [code=overloaded]": 1}]'},
    {"messages": messages(("user", "x"), ("system", "y"))},
    {"messages": messages(("user", "\ud83d"))},
    {"sampling_parameters": {"exceeds maximum queue size": 1}},
    {"sampling_parameters": {"a=b] c%20": " [code=stopping]"}},
    {"sampling_parameters": {"temperature": "unknown model"}},
    {"sampling_parameters": {"max_tokens": 10**6}},
    {"sampling_parameters": {"logit_bias": {"5": 101}}},
    {"sampling_parameters": {"stop": "x" * 10**4}},
    {"sampling_parameters": b"[]"},
    {"parameters": {"stream": 3}},
)


def refusals() -> Iterator[ChatError]:
    """What real bad requests are told."""
    parser = make_parser(max_prompt_bytes=100)
    for fields in BAD_REQUESTS:
        with pytest.raises(InvalidArgumentError) as caught:
            parse(parser, **fields)
        yield caught.value
    with pytest.raises(InvalidArgumentError) as caught:
        vllm_contract.read({"image": b""}, {})
    yield caught.value


CORPUS = [*raise_sites(), *refusals()]


def at_the_doors(error: ChatError, status: str) -> list[object]:
    """All but the message that a caller of the SDK, of the gateway and of the command gets."""
    doors: list[object] = []
    for read in (errors.from_text(to_wire(error)), errors.from_status(status, to_wire(error), "host:8001")):
        if isinstance(read, errors.InvalidRequestError):
            read = renamed(read, {"text_input": "prompt"})
        told = from_client(read, retry_after=3)
        doors += [type(read), read.code, read.field, read.row, code_of(read)]
        doors += [told.status, told.kind, told.param, told.code, told.headers]
    return doors


class TestTheWords:
    def test_the_corpus_is_one(self) -> None:
        assert len(CORPUS) > 80
        assert {type(error) for error in CORPUS} == set(FAMILY)

    def test_other_words_change_nothing_at_the_doors(self) -> None:
        dice = random.Random(10)
        for error in CORPUS:
            status = dice.choice(STATUSES)
            expected = at_the_doors(error, status)
            for _ in range(10):
                sentence = " ".join(dice.choices(TRAPS, k=dice.randint(0, 6)))
                assert at_the_doors(type(error)(sentence, field=error.field, row=error.row), status) == expected

    def test_the_client_knows_none_of_our_words(self) -> None:
        """Its patterns are for Triton's. A text with our words and without the data tells it nothing."""
        for error in raise_sites():  # the real refusals repeat words of their callers
            if not isinstance(error, RequestCancelledError):
                found = [pattern.pattern for pattern, _ in errors._TRITONS if pattern.search(error.sentence)]
                assert found == [], error.sentence

    @pytest.mark.parametrize("folder", ["client", "gateway", "ui"])
    def test_nobody_else_looks_for_our_words(self, folder: str) -> None:
        """No literal of theirs outside of docstrings is a piece of a sentence of ours that a program could look for."""
        compared = {text for path in sorted((ROOT / folder).rglob("*.py")) for text in looked_for(path)}
        assert [(text, error.sentence) for text in compared for error in CORPUS if text in error.sentence] == []


_LOOKS = {"search", "match", "fullmatch", "compile", "startswith", "endswith", "removeprefix", "find", "index", "count"}
_SHORT = 6
"""Shorter texts are parts of words, found everywhere."""


def looked_for(path: Path) -> Iterator[str]:
    """The texts that a module looks for in others: `"..." in x`, `x.startswith("...")`, `re.search("...", x)`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Compare(left=ast.Constant(value=str(text)), ops=[ast.In() | ast.NotIn()]):
                candidates = [text]
            case ast.Call(func=ast.Attribute(attr=name), args=args) if name in _LOOKS:
                candidates = [arg.value for arg in args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            case _:
                continue
        yield from (part for text in candidates for part in text.split("|") if len(part) >= _SHORT)
