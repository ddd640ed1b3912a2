"""The blocks and figures of docs/tutorial.md, without a server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.tutorial import PAGE, Block, Command, blocks, commands, with_figures, write_files

TEXT = PAGE.read_text(encoding="utf-8")
SMALL = """
```python file=a/model.py
x = 1
```
```console server
$ first \\
    --more
printed
$ second
```
**Measured:** `one` nothing yet
**Measured:** `two` nothing yet
<!-- figures: begin -->
<!-- figures: end -->
"""
ONE = "| `one` | 10 (9 to 11) | 1.00 | 200 (190 to 210) | 1.00 | 300 |\n"
ROWS = ONE + "| `two` | 25 (9 to 31) | 2.50 | 20 (19 to 21) | 0.10 | 30 |\n"


def test_blocks() -> None:
    assert blocks(SMALL) == [
        Block("python", Path("a/model.py"), "", "x = 1\n", 2),
        Block("console", None, "server", "$ first \\\n    --more\nprinted\n$ second\n", 5),
    ]


def test_commands_and_what_they_print() -> None:
    assert commands(blocks(SMALL)[1].text) == [
        Command("first \\\n    --more", "printed\n"),
        Command("second", ""),
    ]


def test_a_console_begins_with_a_command() -> None:
    with pytest.raises(ValueError, match="not with 'printed'"):
        commands("printed\n$ first\n")


def test_files_are_written(tmp_path: Path) -> None:
    assert write_files(SMALL, tmp_path) == [Path("a/model.py")]
    assert (tmp_path / "a" / "model.py").read_text() == "x = 1\n"


def test_figures_go_into_the_table_and_to_the_steps() -> None:
    page = with_figures(SMALL, f"{ROWS}\nall answers agree\n")
    assert f"begin -->\n{ROWS}<!--" in page
    assert "\n**Measured:** `one` 10 tokens/s; first token after 200 ms.\n" in page
    assert "`two` 25 tokens/s (2.50 times `one`); first token after 20 ms (0.10 times).\n" in page
    assert with_figures(page, ROWS) == page


@pytest.mark.parametrize(("output", "told"), [("no table", "there must be a table"), (ONE, "of two")])
def test_figures_that_are_missing(output: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        with_figures(SMALL, output)


def test_the_steps_of_the_page_say_what_its_table_says() -> None:
    assert with_figures(TEXT, TEXT[TEXT.index("<!-- figures: begin") :]) == TEXT


def test_each_fence_of_the_page_is_a_block() -> None:
    fences = re.findall(r"^\s*(?:```|~~~).*$", TEXT, re.MULTILINE)
    assert len(fences) == 2 * len(blocks(TEXT))


def test_each_file_of_the_page_is_there() -> None:
    targets = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert len(targets) > 15
    assert [target for target in targets if not (PAGE.parent / target).exists()] == []
