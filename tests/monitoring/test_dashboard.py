"""The dashboard is Grafana's format, readable, and of its release. What it asks for is tested in tests/integration."""

from __future__ import annotations

import re
from itertools import pairwise

from tests.monitoring.chart import NAMESPACE, RELEASE, dashboard
from tests.monitoring.grafana import VARIABLES, expressions, panels
from tests.monitoring.promql import selectors
from tools import dashboard as tool

UNITS = {"none", "s", "reqps", "percentunit", "bytes", "Bps", "watt"}
"""Those of Grafana's units that are used."""


def test_the_committed_file_is_what_the_tool_writes() -> None:
    assert tool.TARGET.read_text(encoding="utf-8") == tool.text(), "run `python -m tools.dashboard`"


def test_it_is_of_its_release() -> None:
    ours = dashboard()
    assert re.fullmatch(r"[0-9a-f]{40}", ours["uid"])  # Grafana takes at most 40 characters
    assert ours["title"] == f"triton-chat {NAMESPACE}/{RELEASE}"
    current = {one["name"]: one["current"].get("value") for one in ours["templating"]["list"]}
    assert (current["namespace"], current["release"]) == (NAMESPACE, RELEASE)
    assert not re.search(r"\b(NAMESPACE|RELEASE|UID)\b", str(ours))


def test_its_queries_are_promql_and_stay_within_the_release() -> None:
    ours = dashboard()
    defined = {one["name"] for one in ours["templating"]["list"]} - {"datasource"}
    assert defined == set(VARIABLES) - {"__rate_interval"}
    for selector in selectors(*expressions(ours)):
        if selector.text != "triton_chat_requests_running{}":  # asked for the namespaces there are
            assert f'namespace="{NAMESPACE}"' in selector.text
    for selector in selectors(*(target["expr"].replace("$__rate_interval", "1m") for target in targets())):
        assert '{namespace="$namespace",release="$release",track=~"$track"' in selector.text


def targets() -> list[dict[str, str]]:
    return [target for panel in panels(dashboard()) for target in panel["targets"]]


def test_every_panel_has_a_unit_a_name_for_each_line_and_the_chosen_data_source() -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(dashboard()):
        title = panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, title
        assert [target["refId"] for target in panel["targets"]] == list("ABC"[: len(panel["targets"])]), title
        assert panel["datasource"] == source, title
        for target in panel["targets"]:
            assert target["datasource"] == source, title
            assert target["legendFormat"] or panel["type"] == "stat", title
            assert target["instant"] != target["range"], title


def test_a_legend_names_labels_that_the_query_keeps() -> None:
    for target in targets():
        for name in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            grouped = re.search(r"by \(([^)]*)\)", target["expr"])
            assert grouped is None or name in grouped[1].split(", "), target


def test_thresholds_rise() -> None:
    for panel in panels(dashboard()):
        first, *limits = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert first is None, panel["title"]
        assert limits == sorted(limits), panel["title"]


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    found = dashboard()["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    cells = [
        (x, y)
        for panel in found
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    rows = [panel["gridPos"]["y"] for panel in found if panel["type"] == "row"]
    assert all(above < below for above, below in pairwise(rows))
