"""The folders of the engine import in one direction, and none in a circle."""

from __future__ import annotations

from pathlib import Path

import chat_engine
from tests.rooms import circle, imports

ROOT = Path(chat_engine.__file__).parent
NOUNS = "nouns"
MAY_IMPORT = {
    NOUNS: set(),
    "text": {NOUNS},
    "reading": {NOUNS, "text"},
    "answering": {NOUNS, "text"},
    "native": {NOUNS, "text", "answering", "service"},  # of service the door, and the thread that runs the model
    "vllm": {NOUNS, "text", "answering", "native", "service"},
    "service": {NOUNS},
    "tokenizer": {NOUNS, "text", "reading", "native", "vllm"},  # of vllm how long a context is
    "serving": {NOUNS, "text", "reading", "answering", "native", "vllm", "service"},
}


def room(module: str) -> str:
    """Of `chat_engine.native.engine` it is `native`; the files at the top are nouns, but for those named above."""
    first = module.split(".")[1]
    return first if first in MAY_IMPORT else NOUNS


def test_rooms_import_in_one_direction() -> None:
    wrong = {(a, b) for a, b in imports(chat_engine) if room(b) not in {room(a), *MAY_IMPORT[room(a)]}}
    assert wrong == set()
    assert {room(a) for a, _ in imports(chat_engine)} == set(MAY_IMPORT)


def test_the_second_engine_takes_of_the_first_what_reads_checkpoints() -> None:
    taken = {b for a, b in imports(chat_engine) if room(a) == "vllm" and room(b) == "native"}
    assert taken == {
        "chat_engine.native.checkpoint",
        "chat_engine.native.context",
        "chat_engine.native.generation_defaults",
    }


def test_no_circles() -> None:
    assert circle(imports(chat_engine)) == set()
    assert circle({("a", "b"), ("b", "c"), ("c", "b")}) == {"a", "b", "c"}


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
