"""Writes the tables of values into the chart's README: `python -m tools.chart_readme`, or `make chart-readme`.

The words come from the comments of values.yaml, above the value they describe: `# -- words` for any value, `# words`
for a group. Lines that follow such a line, down to the value, belong to it. Every key gets a row but the one that
opens a block; a map written on one line is one row.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent.parent / "deploy" / "helm" / "triton-chat"
BEGIN = "<!-- values: begin, written by tools/chart_readme.py -->"
END = "<!-- values: end -->"
GENERAL = "General"
MARK = "-- "


@dataclass(frozen=True)
class Row:
    """A value, with its default as values.yaml has it."""

    path: str
    default: str
    words: str


@dataclass(frozen=True)
class Section:
    """A top-level block of values.yaml, or all top-level values that are no block."""

    title: str
    words: str
    rows: tuple[Row, ...]


class ReadmeError(Exception):
    """The README has no place for the tables."""


def sections(values_yaml: str) -> list[Section]:
    """The values in their order, by top-level key."""
    lines = values_yaml.splitlines()
    root = yaml.compose(values_yaml, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "values.yaml is a map"
    general: list[Row] = []
    blocks: list[Section] = []
    for key, value in root.value:
        if _is_block(value):
            words = _words_above(lines, key, plain=True)
            blocks.append(Section(key.value, words, tuple(_rows(values_yaml, lines, value, key.value))))
        else:
            general.append(_row(values_yaml, lines, key, value, key.value))
    return [Section(GENERAL, "", tuple(general)), *blocks]


def tables(values_yaml: str) -> str:
    """The sections as Markdown."""
    return "\n\n".join("\n\n".join(_parts(section)) for section in sections(values_yaml) if section.rows)


def updated(readme: str, values_yaml: str) -> str:
    """`readme` with the tables of `values_yaml` between its two marks.

    Raises:
        ReadmeError: the marks are missing, or there are several.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ReadmeError(f"the README needs the line {BEGIN} and, after it, the line {END}, once each")
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables(values_yaml)}\n\n{END}{after}"


def main(chart: Path = CHART) -> int:
    readme = chart / "README.md"
    try:
        text = updated(readme.read_text(encoding="utf-8"), (chart / "values.yaml").read_text(encoding="utf-8"))
    except ReadmeError as error:
        print(f"{readme.name}: {error}", file=sys.stderr)
        return 1
    readme.write_text(text, encoding="utf-8")
    return 0


def _rows(text: str, lines: Sequence[str], block: yaml.MappingNode, path: str) -> Iterator[Row]:
    for key, value in block.value:
        name = f"{path}.{key.value}"
        if _is_block(value):
            yield from _rows(text, lines, value, name)
        else:
            yield _row(text, lines, key, value, name)


def _row(text: str, lines: Sequence[str], key: yaml.ScalarNode, value: yaml.Node, path: str) -> Row:
    default = text[value.start_mark.index : value.end_mark.index]
    group = isinstance(value, yaml.MappingNode) and bool(value.value)
    return Row(path, " ".join(default.split()), _words_above(lines, key, plain=group))


def _is_block(value: yaml.Node) -> bool:
    return isinstance(value, yaml.MappingNode) and bool(value.value) and not value.flow_style


def _words_above(lines: Sequence[str], key: yaml.ScalarNode, plain: bool) -> str:
    """The comment right above `key`: from its last `# --` on, or all of it if there is none and `plain`."""
    indent = " " * key.start_mark.column
    comment: list[str] = []
    for line in reversed(lines[: key.start_mark.line]):
        match = re.fullmatch(rf"{indent}# ?(.*)", line)
        if match is None:
            break
        comment.insert(0, match[1])
        if match[1].startswith(MARK):
            return " ".join(comment).removeprefix(MARK)
    return " ".join(comment) if plain else ""


def _parts(section: Section) -> Iterator[str]:
    yield f"### {section.title}"
    if section.words:
        yield section.words
    rows = [f"| `{row.path}` | `{_escaped(row.default)}` | {_cell(row.words)} |" for row in section.rows]
    yield "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *rows])


def _cell(text: str) -> str:
    """`text` for a cell of a table; outside of code an angle bracket would begin a tag."""
    return _escaped(re.sub(r"`[^`]*`|<", lambda match: "&lt;" if match[0] == "<" else match[0], text))


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(main())
