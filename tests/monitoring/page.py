"""docs/operations.md and docs/runbook.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
BOTH = f"{PAGE}\n{RUNBOOK}"
PROSE = re.sub(r"^ *```.*?^ *```$", "", BOTH, flags=re.MULTILINE | re.DOTALL)
INLINE = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PROSE)]
"""What stands in backquotes, outside of the blocks; it may be broken over two lines."""


def anchors(markdown: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def yaml_blocks() -> dict[str, Any]:
    """By the file name in their first line."""
    blocks = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return {name: yaml.safe_load(text) for name, text in blocks}


def adapter_rules() -> list[dict[str, Any]]:
    """Of prometheus-adapter."""
    return list(yaml_blocks()["prometheus-adapter-values.yaml"]["rules"]["custom"])


def rows(*columns: str) -> list[list[str]]:
    """Of the table with this head."""
    head = re.escape(f"| {' | '.join(columns)} |")
    found = re.search(rf"^{head}\n\|[ |-]+\|\n((?:\|.*\|\n)+)", PAGE, re.MULTILINE)
    assert found, columns
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[1].splitlines()]
