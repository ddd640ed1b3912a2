"""Tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """For tables; without a terminal, wide enough not to break lines."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=160)


def table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
