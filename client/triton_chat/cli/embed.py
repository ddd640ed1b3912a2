"""`embed`: texts to vectors, and how similar they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from triton_chat.cli import tables, terminal
from triton_chat.cli.answers import connected
from triton_chat.cli.options import Connection
from triton_chat.errors import InvalidRequestError

if TYPE_CHECKING:
    from triton_chat.embeddings import EmbeddingResult

_MATRIX_TEXTS = 12
"""More texts than these do not fit side by side; each is then shown with its nearest."""

_SHOWN = 60
"""Characters of a text."""


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """What `embed` asks for, apart from the texts."""

    connection: Connection
    model: str
    dimensions: int | None
    timeout: float | None


def embed(options: EmbedOptions, arguments: list[str]) -> None:
    """Embed the arguments and the lines of piped text; lines without anything but spaces are left out.

    Raises:
        InvalidRequestError: there are no texts.
    """
    lines = (terminal.piped_input() or "").split("\n")
    texts = arguments + [line.removesuffix("\r") for line in lines if line.strip()]
    if not texts:
        raise InvalidRequestError("no texts: write them as arguments, or pipe them in, one a line")
    with connected(options.connection) as client:
        result = client.embed(texts, model=options.model, dimensions=options.dimensions, timeout=options.timeout)
    if options.connection.as_json:
        terminal.write_json(_document(options.model, texts, result))
    elif len(texts) == 1:
        terminal.write(" ".join(f"{value:.6g}" for value in result.embeddings[0].tolist()) + "\n")
    else:
        tables.console().print(_matrix(texts, result) if len(texts) <= _MATRIX_TEXTS else _nearest(texts, result))


def _document(model: str, texts: list[str], result: EmbeddingResult) -> dict[str, object]:
    rows = zip(texts, result.num_tokens, result.embeddings.tolist(), strict=True)
    return {
        "model": model,
        "dimensions": result.embeddings.shape[1],
        "data": [{"text": text, "num_tokens": count, "embedding": vector} for text, count, vector in rows],
    }


def _matrix(texts: list[str], result: EmbeddingResult) -> Table:
    """The cosine similarity of each two texts."""
    table = tables.table("", "text", "tokens", *(str(index + 1) for index in range(len(texts))))
    for index, (text, count) in enumerate(zip(texts, result.num_tokens, strict=True)):
        scores = (result.embeddings @ result.embeddings[index]).tolist()
        table.add_row(str(index + 1), _short(text), str(count), *(f"{score:.3f}" for score in scores))
    return table


def _nearest(texts: list[str], result: EmbeddingResult) -> Table:
    """The text that is most similar to each, and how similar it is."""
    table = tables.table("", "text", "tokens", "nearest", "", "similarity")
    for index, (text, count) in enumerate(zip(texts, result.num_tokens, strict=True)):
        scores = result.embeddings @ result.embeddings[index]
        scores[index] = -2.0  # less than any similarity: a text is not its own neighbour
        other = int(scores.argmax())
        row = str(index + 1), _short(text), str(count), str(other + 1), _short(texts[other]), f"{scores[other]:.3f}"
        table.add_row(*row)
    return table


def _short(text: str) -> Text:
    """As it is: what looks like markup in a text is none."""
    return Text(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")
