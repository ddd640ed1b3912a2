"""What a dashboard asks Prometheus for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.monitoring.chart import NAMESPACE, RELEASE

Json = dict[str, Any]

VARIABLES = {"namespace": NAMESPACE, "release": RELEASE, "track": "stable", "model": "chat", "__rate_interval": "1m"}
"""Values of a dashboard's variables, and of the one that Grafana adds."""


def panels(dashboard: Json) -> list[Json]:
    """Those that show something, not the rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: Json, variables: Mapping[str, str] = VARIABLES) -> Iterator[str]:
    """The queries of all panels and variables, with Grafana's variables replaced. Raises KeyError for another one."""
    queries = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert asked, f"the variable {variable['name']} asks for {variable['query']['query']}"
            queries.append(f"count by ({asked[2]}) ({asked[1]})")
    for query in queries:
        yield re.sub(r"\$(\w+)", lambda match: variables[match[1]], query)
