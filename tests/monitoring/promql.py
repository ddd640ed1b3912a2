"""What expressions ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import promql_parser

_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


@dataclass(frozen=True, order=True)
class Selector:
    """A vector selector: the metric's name, and all of it as PromQL."""

    metric: str
    text: str

    @property
    def family(self) -> str:
        """The metric without what a histogram adds to its name."""
        return _HISTOGRAM.sub("", self.metric)


def selectors(*expressions: str) -> set[Selector]:
    """All that stand in the expressions. Raises ValueError for one that is no PromQL."""
    found: set[Selector] = set()

    def note(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, f"a selector without a name: {node.prettify()}"
            found.add(Selector(node.name, f"{node.name}{node.matchers}"))

    for expression in expressions:
        promql_parser.walk(promql_parser.parse(expression), pre_visit=note)
    return found


def metrics(expressions: Iterable[str]) -> set[str]:
    return {selector.metric for selector in selectors(*expressions)}
