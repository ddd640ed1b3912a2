from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from tests.client.commands import run
from tests.client.fake_embeddings import FakeEmbeddings, by_length, dimensions_of


@pytest.fixture
def fake() -> Iterator[FakeEmbeddings]:
    server = FakeEmbeddings()
    yield server
    server.stop()


def test_two_texts_are_compared(fake: FakeEmbeddings) -> None:
    done = run(fake.url, "embed", "a cat", "[bold]猫")
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert lines[0].split() == ["text", "tokens", "1", "2"]
    similarity = f"{by_length(['a cat'])[0] @ by_length(['[bold]猫'])[0]:.3f}"
    assert lines[1].split() == ["1", "a", "cat", "5", "1.000", similarity]
    assert lines[2].split() == ["2", "[bold]猫", "7", similarity, "1.000"]


def test_many_texts_are_shown_with_their_nearest(fake: FakeEmbeddings) -> None:
    lines = "\n".join("x" * index for index in range(1, 21))
    shown = run(fake.url, "embed", stdin=lines.encode()).stdout.decode().splitlines()
    assert len(shown) == 21
    assert shown[1].split()[:5] == ["1", "x", "1", "2", "xx"]
    assert shown[20].split()[3] == "19"


def test_the_vector_of_one_text(fake: FakeEmbeddings) -> None:
    done = run(fake.url, "embed", "abc", "--dimensions", "2")
    np.testing.assert_allclose(np.array(done.stdout.split(), dtype=float), by_length(["abc"])[0, :2], rtol=1e-5)
    assert dimensions_of(fake.next_request()) == 2


def test_arguments_come_before_the_lines_of_a_pipe(fake: FakeEmbeddings) -> None:
    assert run(fake.url, "embed", "q", stdin="a\u2028b\r\n\n  \nc\n".encode()).returncode == 0
    assert fake.next_request().tensor("text") == ["q", "a\u2028b", "c"]


def test_json_is_one_document(fake: FakeEmbeddings) -> None:
    document = json.loads(run(fake.url, "embed", "ab", "日本", "--json").stdout)
    assert (document["model"], document["dimensions"]) == ("embeddings", 4)
    assert [(entry["text"], entry["num_tokens"]) for entry in document["data"]] == [("ab", 2), ("日本", 2)]
    np.testing.assert_array_equal(np.float32([entry["embedding"] for entry in document["data"]]), by_length(["ab"] * 2))


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "part"),
    [
        ((), None, 2, "no texts"),
        ((), b"\n \n", 2, "no texts"),
        ((), b"\xff", 2, "standard input is not UTF-8"),
        (("a", "bad"), None, 2, "row 1: text: 99 tokens given; this model's maximum context length is 9 tokens"),
        (("a", "--dimensions", "0"), None, 2, "--dimensions"),
        (("a", "--model", "nope"), None, 2, "`triton-chat models`"),
        (("stall", "--timeout", "0.1"), None, 124, "longer than its time limit"),
    ],
)
def test_wrong_use(fake: FakeEmbeddings, arguments: tuple[str, ...], stdin: bytes | None, code: int, part: str) -> None:
    done = run(fake.url, "embed", *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (code, b"")
    assert part in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_help_teaches() -> None:
    done = run("", "embed", "--help")
    assert done.returncode == 0
    assert 'triton-chat embed "a cat"' in done.stdout.decode()
