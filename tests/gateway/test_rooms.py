"""The folders of the gateway import in one direction, and none in a circle."""

from __future__ import annotations

import chat_gateway
from tests.rooms import circle, imports

TOP = "top"
MAY_IMPORT = {
    "settings": set(),
    "logs": {"settings"},
    "errors": set(),
    "schemas": set(),
    "upstream": {"errors", "settings"},
    "http": {"errors", "settings", "upstream"},
    "answers": {"errors", "settings", "upstream", "http", "schemas"},
    "routes": {"errors", "upstream", "http", "schemas", "answers"},
    TOP: {"settings", "logs", "errors", "upstream", "http", "routes"},
}


def room(module: str) -> str:
    """Of `chat_gateway.answers.sse` it is `answers`; `app` and `__main__` put the others together."""
    first = module.split(".")[1]
    return first if first in MAY_IMPORT else TOP


def test_rooms_import_in_one_direction() -> None:
    pairs = imports(chat_gateway)
    assert {(a, b) for a, b in pairs if room(b) not in {room(a), *MAY_IMPORT[room(a)]}} == set()
    assert {room(a) for a, _ in pairs} | {room(b) for _, b in pairs} == set(MAY_IMPORT)


def test_no_circles() -> None:
    assert circle(imports(chat_gateway)) == set()
