"""The data at the end of an error's text: what the engine writes, the client reads; nobody reads the sentences."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chat_engine.errors import FAMILY, ChatError, field_name, from_wire, to_wire
from chat_gateway.errors import from_client
from triton_chat import errors
from triton_chat.cli.exits import code_of

KINDS = st.sampled_from(FAMILY)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TRAPS = st.sampled_from(["", " [code=overloaded]", "text: ", "row 3: ", "Exceeds maximum queue size", "]", " field=x"])
SENTENCES = st.tuples(TRAPS, WORDS, TRAPS).map("".join)
FIELDS = st.none() | st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
ROWS = st.none() | st.integers(0, 99_999)
ADDRESS = "host:8001"


@given(kind=KINDS, sentence=SENTENCES, field=FIELDS, row=ROWS)
def test_a_model_reads_what_another_has_written(
    kind: type[ChatError], sentence: str, field: str | None, row: int | None
) -> None:
    read = from_wire(to_wire(kind(sentence, field=field, row=row)))
    assert read is not None
    assert (type(read), read.sentence, read.field, read.row) == (kind, sentence, field, row)


@given(kind=KINDS, sentence=SENTENCES, field=FIELDS, row=ROWS)
def test_the_client_reads_what_a_model_has_written(
    kind: type[ChatError], sentence: str, field: str | None, row: int | None
) -> None:
    sentence = f"({sentence})"  # white space at the ends of a text is the client's to remove
    text = to_wire(kind(sentence, field=field, row=row))
    for found in (errors.from_text(f"[request id: 7] {text}"), errors.from_status("INTERNAL", text, ADDRESS)):
        assert (found.sentence, found.field, found.row) == (sentence, field, row)
        assert found.code == (kind.code if kind is not ChatError else "engine_failed")


@given(kind=KINDS, sentences=st.tuples(SENTENCES, SENTENCES), field=FIELDS, row=ROWS)
def test_another_wording_changes_nothing_but_the_wording(
    kind: type[ChatError], sentences: tuple[str, str], field: str | None, row: int | None
) -> None:
    """At the SDK, the command line and the gateway; tests/integration/test_wording.py asks a real server."""
    seen = []
    for sentence in sentences:
        error = errors.from_text(to_wire(kind(f"({sentence})", field=field, row=row)))
        answer = from_client(error, 3)
        seen.append(
            (
                type(error), error.code, error.field, error.row, code_of(error),
                answer.status, answer.kind, answer.code, answer.param, answer.headers,
            )
        )  # fmt: skip
    assert seen[0] == seen[1]


def test_each_code_is_known_at_both_ends() -> None:
    ours = {kind.code for kind in FAMILY} - {ChatError.code}
    assert len(ours) == len(FAMILY) - 1
    for code in ours:
        assert errors.from_text(f"x [code={code}]").code == code


def test_texts_of_others_are_none_of_ours() -> None:
    for text in ("", "x", "[code=overloaded]", "x [code=overloaded", "x [code=nobodys]", "x [code=overloaded] y"):
        assert from_wire(text) is None


def test_a_field_is_written_as_openai_writes_it() -> None:
    assert field_name("messages", 0, "content") == "messages[0].content"
    assert field_name("stop", 1) == "stop[1]"
    assert field_name() == ""
