"""The folders of the engine import in one direction, and none in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import chat_engine

ROOT = Path(chat_engine.__file__).parent
NOUNS = "nouns"
MAY_IMPORT = {
    NOUNS: set(),
    "text": {NOUNS},
    "reading": {NOUNS, "text"},
    "native": {NOUNS, "text", "service"},  # of service the door, and the thread that runs the model
    "service": {NOUNS},
    "tokenizer": {NOUNS, "text", "reading", "native"},
    "serving": {NOUNS, "text", "reading", "native", "service"},
}


def room(module: str) -> str:
    """Of `chat_engine.native.engine` it is `native`; the files at the top are nouns, but for those named above."""
    first = module.split(".")[1]
    return first if first in MAY_IMPORT else NOUNS


def imports() -> set[tuple[str, str]]:
    found = set()
    for path in ROOT.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chat_engine."):
                found.add((module, node.module))
    return found


def test_rooms_import_in_one_direction() -> None:
    wrong = {(a, b) for a, b in imports() if room(b) not in {room(a), *MAY_IMPORT[room(a)]}}
    assert wrong == set()
    assert {room(a) for a, _ in imports()} == set(MAY_IMPORT)


def test_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for module, imported in imports():
        graph.setdefault(module, set()).add(imported)
    left = dict(graph)
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}


def test_only_its_own_rooms_need_torch() -> None:
    """The scheduler and the block accounting are pure Python, and so is all that reads requests."""
    pure = {
        "engine.py",
        "kv_cache.py",
        "memory.py",
        "runner.py",
        "running.py",
        "scheduler.py",
        "sequence.py",
        "token_rules.py",
    }
    for path in ROOT.rglob("*.py"):
        if path.parent.name != "native" or path.name in pure:
            assert "import torch" not in path.read_text(encoding="utf-8"), path.name
