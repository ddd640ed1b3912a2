"""README.md and README.zh-CN.md say the same: headings, commands, links, tables and figures."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from local.options import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")

BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
UNTRANSLATED = {"triton-chat", "Docker", "Kubernetes", "Python"}
HAN = re.compile(r"[\u4e00-\u9fff]")


def prose(page: str) -> str:
    return BLOCK.sub("", page)


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ .+$", prose(page), re.MULTILINE)


def levels(page: str) -> list[int]:
    return [len(heading.split(" ", 1)[0]) for heading in headings(page)]


def blocks(page: str) -> list[str]:
    return BLOCK.findall(page)


def links(page: str) -> list[str]:
    """The targets in order, but for the link to the other language."""
    return [target for target in LINK.findall(prose(page)) if target not in ("README.md", "README.zh-CN.md")]


def rows_of_sections(page: str) -> list[int]:
    """How many table rows, and items of a list, each section has."""
    sections = re.split(r"^#+ .+$", prose(page), flags=re.MULTILINE)
    return [len(re.findall(r"^(?:\||- )", section, re.MULTILINE)) for section in sections]


def code(page: str) -> list[list[str]]:
    """What stands in backquotes, section by section; its order is the language's."""
    sections = re.split(r"^#+ .+$", prose(page), flags=re.MULTILINE)
    return [sorted(" ".join(one.split()) for one in re.findall(r"`([^`]+)`", section)) for section in sections]


def figures(page: str) -> list[list[str]]:
    """The numbers of each section; ordinals and small counts are words in either language."""
    sections = re.split(r"^#+ .+$", LINK.sub("]", prose(page)), flags=re.MULTILINE)
    return [sorted(re.findall(r"\d+(?:\.\d+)*", section)) for section in sections]


@pytest.mark.parametrize("part", [levels, blocks, links, rows_of_sections, code, figures])
def test_both_languages_have_the_same(part: Callable[[str], object]) -> None:
    assert part(CHINESE) == part(ENGLISH)


def test_headings_stand_in_the_same_order() -> None:
    """Those that are names are not translated, and so show the order."""
    pairs = list(zip(headings(ENGLISH), headings(CHINESE), strict=True))
    assert {one.lstrip("# ") for one, other in pairs if one == other} == UNTRANSLATED
    assert all(HAN.search(other) or "API" in other for one, other in pairs if one != other)


def test_each_language_links_to_the_other() -> None:
    assert LINK.findall(ENGLISH)[0] == "README.zh-CN.md"
    assert LINK.findall(CHINESE)[0] == "README.md"


def test_a_paragraph_in_chinese_is_one_line() -> None:
    """A page shows a line break as a space, and Chinese has none between its words."""
    lines = re.split(r"\n(?=\n|- |\|)", prose(CHINESE))
    assert [line for line in lines if "\n" in line.strip()] == []


def test_a_paragraph_is_in_chinese() -> None:
    paragraphs = [text for text in prose(CHINESE).split("\n\n") if text.strip() and not text.startswith("![")]
    assert [text for text in paragraphs if not HAN.search(text) and not text.strip().startswith("#")] == []
