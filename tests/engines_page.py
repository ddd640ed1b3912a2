"""docs/engines.md, taken apart for tests with vLLM and without."""

from __future__ import annotations

import json
import re
from pathlib import Path

PAGE = (Path(__file__).parent.parent / "docs" / "engines.md").read_text(encoding="utf-8")


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split(" | ")]


def rows(head: str) -> list[list[str]]:
    """Of the table whose first column has this head."""
    found = re.search(rf"^\| {re.escape(head)} \|.*\n\|[ |-]+\|\n((?:\|.*\|\n?)+)", PAGE, re.MULTILINE)
    assert found, head
    return [cells(row) for row in found[1].splitlines()]


def _in_blocks() -> set[str]:
    examples = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return {name for example in examples for name in json.loads(example).get("vllm", {})}


VLLM_NAMES = {
    *re.findall(r"`vllm\.(\w+)`", PAGE),
    *_in_blocks(),
    *(
        name
        for there, here in rows("there")
        if "same names in `vllm`" in here
        for name in re.findall(r"`(\w+)`", there)
    ),
}
"""Arguments that the page tells to set in the block `vllm`."""
