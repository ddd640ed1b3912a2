"""The blocks of docs/tutorial.md, for its readers, its test, and whoever measures.

`python -m tools.tutorial write` writes the files that the page prints, below the current folder. `python -m
tools.tutorial figures < TABLE` puts what the page's load.py printed into the page.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(?<=<!-- figures: begin -->\n).*?(?=<!-- figures: end -->)", re.DOTALL)
MEASURED = re.compile(r"^\*\*Measured:\*\* `(\w+)`.*$", re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)` \| (\d+) .*?\| ([\d.]+) \| (\d+) .*?\| ([\d.]+) \| \d+ \|$", re.MULTILINE)

app = typer.Typer(help="The files and figures of docs/tutorial.md.", no_args_is_help=True, add_completion=False)


@dataclass(frozen=True)
class Block:
    """A fenced block: ```` ```<language> file=<path> ```` or ```` ```<language> <use> ````."""

    language: str
    file: Path | None
    use: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A line of a console block after its `$ `, joined over backslashes, and what the page says that it prints."""

    text: str
    output: str


def blocks(page: str) -> list[Block]:
    return [_block(match, page.count("\n", 0, match.start()) + 1) for match in FENCE.finditer(page)]


def commands(console: str) -> list[Command]:
    """Raises ValueError for text before the first command."""
    before, *parts = re.split(r"^\$ ", console, flags=re.MULTILINE)
    if before:
        raise ValueError(f"a console block must begin with a command ($ ...), not with {before.splitlines()[0]!r}")
    return [_command(part) for part in parts]


def write_files(page: str, folder: Path) -> list[Path]:
    """Writes the files of `page` below `folder`; those that are there are replaced. Returns their names in the page."""
    files = [(block.file, block.text) for block in blocks(page) if block.file is not None]
    for name, text in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [name for name, _ in files]


def with_figures(page: str, output: str) -> str:
    """`page` with the table in `output`, and with a step's share of it in each line that begins with **Measured:**.

    Raises ValueError where the table, or a step's row in it, is missing.
    """
    table = "".join(f"{line}\n" for line in output.splitlines() if line.startswith("|"))
    rows = [match.groups() for match in ROW.finditer(table)]
    if not rows:
        raise ValueError("there must be a table with a row for each model, as load.py prints it")
    sentences = {name: _sentence(rows[0][0], *row) for row in rows for name in [row[0]]}
    missing = set(MEASURED.findall(page)) - set(sentences)
    if missing:
        raise ValueError(f"the table must have a row for each of {', '.join(sorted(missing))}")
    page = MEASURED.sub(lambda match: sentences[match[1]], page)
    return TABLE.sub(lambda _: table, page)


@app.command()
def write() -> None:
    """Write the files that the page prints, below the current folder."""
    for name in write_files(PAGE.read_text(encoding="utf-8"), Path.cwd()):
        print(name)


@app.command()
def figures() -> None:
    """Put the table that load.py printed, from standard input, into the page."""
    try:
        page = with_figures(PAGE.read_text(encoding="utf-8"), sys.stdin.read())
    except ValueError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
    PAGE.write_text(page, encoding="utf-8")


def _block(match: re.Match[str], line: int) -> Block:
    language, _, rest = match["info"].partition(" ")
    is_file = rest.startswith("file=")
    file = Path(rest.removeprefix("file=")) if is_file else None
    return Block(language, file, "" if is_file else rest, match["text"], line)


def _command(part: str) -> Command:
    lines = part.splitlines(keepends=True)
    last = next(number for number, line in enumerate(lines) if not line.endswith("\\\n"))
    return Command("".join(lines[: last + 1]).strip(), "".join(lines[last + 1 :]))


def _sentence(base: str, model: str, rate: str, rate_ratio: str, first: str, first_ratio: str) -> str:
    """Of one step; `base` is the one that the ratios refer to."""
    if model == base:
        return f"**Measured:** `{model}` {rate} tokens/s; first token after {first} ms."
    return (
        f"**Measured:** `{model}` {rate} tokens/s ({rate_ratio} times `{base}`); first token after {first} ms "
        f"({first_ratio} times)."
    )


if __name__ == "__main__":
    app(prog_name="python -m tools.tutorial")
