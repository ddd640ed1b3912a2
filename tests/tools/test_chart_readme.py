"""The tool that writes the chart's README."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import chart_readme as tool
from tools.chart_readme import BEGIN, END, ReadmeError, Row

VALUES = """\
# A comment at the head.

# -- How many.
replicas: 1
plain: ""  # said beside it

# A group on one line.
pair: {a: 1, b: "x|y"}

# What this is.
block:
  # -- First line,
  # second line; <NAME> and `<name>`.
  first: [1, 2]
  # Only a heading, not for this scalar.
  second: true
  deeper:
    # -- Deep down.
    third: {}
"""


def rows() -> dict[str, Row]:
    return {row.path: row for section in tool.sections(VALUES) for row in section.rows}


def test_every_value_has_a_row_in_its_order():
    assert list(rows()) == ["replicas", "plain", "pair", "block.first", "block.second", "block.deeper.third"]


def test_defaults_are_as_written():
    assert rows()["plain"].default == '""'
    assert rows()["pair"].default == '{a: 1, b: "x|y"}'
    assert rows()["block.first"].default == "[1, 2]"


def test_marked_comments_describe_any_value():
    assert rows()["replicas"].words == "How many."
    assert rows()["block.first"].words == "First line, second line; <NAME> and `<name>`."
    assert rows()["block.deeper.third"].words == "Deep down."


def test_plain_comments_describe_groups_alone():
    assert rows()["pair"].words == "A group on one line."
    assert rows()["block.second"].words == ""
    assert [section.words for section in tool.sections(VALUES)] == ["", "What this is."]


def test_tables_are_safe_markdown():
    text = tool.tables(VALUES)
    assert r'`{a: 1, b: "x\|y"}`' in text
    assert "second line; &lt;NAME> and `<name>`." in text


def test_only_what_is_between_the_marks_changes():
    readme = f"# Title\n\n{BEGIN}\nold\n{END}\n\nTail.\n"
    once = tool.updated(readme, VALUES)
    assert once.startswith(f"# Title\n\n{BEGIN}\n")
    assert once.endswith(f"{END}\n\nTail.\n")
    assert "old" not in once
    assert tool.updated(once, VALUES) == once


@pytest.mark.parametrize("readme", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_marks_is_refused(readme):
    with pytest.raises(ReadmeError, match="needs the line"):
        tool.updated(readme, VALUES)


def test_the_command_writes_the_file_or_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "values.yaml").write_text(VALUES)
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    assert tool.main(tmp_path) == 0
    assert "| `replicas` | `1` | How many. |" in readme.read_text()
    readme.write_text("nothing")
    assert tool.main(tmp_path) == 1
    assert "README.md: the README needs the line" in capsys.readouterr().err
