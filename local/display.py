"""One line for each server that starts: what it is doing, and for how long."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from local.service import LocalService


class Readiness:
    """For rich's Live: looks at the servers anew whenever it is drawn."""

    def __init__(self, servers: Sequence[LocalService]) -> None:
        self._servers = servers
        self._spinner = Spinner("dots")

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column()
        table.add_column(justify="right")
        for server in self._servers:
            table.add_row(self._mark(server), server.name, f"{server.seconds:.1f} s", Text(server.stage))
        return table

    def _mark(self, server: LocalService) -> RenderableType:
        if server.is_started and server.poll() is not None:
            return Text("✗", style="red")
        return Text("✓", style="green") if server.ready_after_s is not None else self._spinner
