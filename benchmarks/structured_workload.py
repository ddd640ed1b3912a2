"""What constrained answers are measured with, on this engine and on its peers."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

SHARES = (0.0, 0.5, 1.0)
Rates = dict[float, list[float]]
"""Output tokens per second of each round, for each share of constrained requests."""

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            "required": ["street", "city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TYPICAL: dict[str, dict[str, Any]] = {
    "a person": {"json": PERSON},
    "any object": {"json": True},
    "a list of people": {"json": {"type": "array", "items": PERSON}},
    "an enum of 200": {"json": {"enum": [f"value number {i}" for i in range(200)]}},
    "40 properties": {"json": {"type": "object", "properties": {f"key{i}": {"type": "string"} for i in range(40)}}},
    "a tree": {"json": {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}},
    "a regex": {"regex": r"\d{4}-\d{2}-\d{2}T[0-9:]{5,8}(Z|[+-]\d{2}:\d{2})"},
    "choices": {"choice": ["positive", "negative", "neutral", "mixed"]},
}
ENDLESS = {"json": {"type": "array", "items": PERSON, "minItems": 10_000}}
"""An answer that is never complete, so that each stream has its exact number of tokens."""

console = Console(stderr=True)


def in_turns(run: Callable[[float], float], rounds: int) -> Rates:
    """The rates of each share, in turns, so that a busy machine hurts all alike; after one round to warm up."""
    rates: Rates = {share: [] for share in SHARES}
    for number in range(rounds + 1):
        for share in random.Random(number).sample(SHARES, len(SHARES)):
            rate = run(share)
            console.print(f"round {number} of {rounds}: {share:.0%} constrained: {rate:.0f} tokens/s")
            if number:
                rates[share].append(rate)
    return rates


def show(rates: Rates) -> None:
    """Prints the table that the documentation shows."""
    table = Table("constrained", "output tokens/s, median (min to max)", "relative")
    free = statistics.median(rates[0.0])
    for share, found in rates.items():
        median = statistics.median(found)
        table.add_row(f"{share:.0%}", f"{median:.0f} ({min(found):.0f} to {max(found):.0f})", f"{median / free:.2f}")
    Console().print(table)
