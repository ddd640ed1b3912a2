"""The Prometheus that other tests start: it starts, answers, and knows the rules it is given."""

from __future__ import annotations

from pathlib import Path

from tests.integration.prometheus import prometheus


def test_it_answers(tmp_path: Path) -> None:
    rule = {"record": "one", "expr": "vector(1)"}
    with prometheus(tmp_path / "prometheus", [{"name": "group", "rules": [rule]}], []) as server:
        assert [series["value"][1] for series in server.query("vector(7)")] == ["7"]
        assert [known["name"] for known in server.rules()] == ["one"]
