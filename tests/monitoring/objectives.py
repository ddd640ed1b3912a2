"""Unit tests of the burn-rate alerts, as promtool reads them: the same for each objective."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

_RELEASE = 'namespace="serving", release="demo", track="stable"'
_CHAT = f'{_RELEASE}, pod="triton-1", model="chat"'
_GATEWAY = f'{_RELEASE}, pod="gateway-1"'


@dataclass(frozen=True)
class Objective:
    """`ratio` begins the names of what is recorded, `budget` is the part of the requests that may be bad.

    `good`, `bad` and `total` are the series that count them, where there are such; `others` must not matter.
    """

    alert: str
    ratio: str
    summary: str
    words: str
    budget: float
    good: str
    bad: str = ""
    total: str = ""
    others: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=lambda: {"model": "chat"})


ALL = (
    Objective(
        "TritonChatFirstTokenSlow",
        "triton_chat:first_token_slow",
        "First tokens of chat are slow.",
        "of the first tokens took longer than 2.5 s (track stable); the objective is 5% at most.",
        0.05,
        good=f'gen_ai_server_time_to_first_token_seconds_bucket{{{_CHAT}, le="2.5"}}',
        total=f"gen_ai_server_time_to_first_token_seconds_count{{{_CHAT}}}",
        others=tuple(f'gen_ai_server_time_to_first_token_seconds_bucket{{{_CHAT}, le="{le}"}}' for le in ("0.25", "5")),
    ),
    Objective(
        "TritonChatOutputTokensSlow",
        "triton_chat:output_tokens_slow",
        "Answers of chat are slow.",
        "of the answers took longer than 0.1 s per output token (track stable); the objective is 5% at most.",
        0.05,
        good=f'gen_ai_server_time_per_output_token_seconds_bucket{{{_CHAT}, le="0.1"}}',
        total=f"gen_ai_server_time_per_output_token_seconds_count{{{_CHAT}}}",
        others=tuple(
            f'gen_ai_server_time_per_output_token_seconds_bucket{{{_CHAT}, le="{le}"}}' for le in ("0.01", "1")
        ),
    ),
    Objective(
        "TritonChatEngineErrors",
        "triton_chat:engine_errors",
        "Requests to chat end with errors.",
        "of the requests that the engine accepted ended with an error (track stable); the objective is 1% at most.",
        0.01,
        good=f'triton_chat_requests_total{{{_CHAT}, finish_reason="stop"}}',
        bad=f'triton_chat_requests_total{{{_CHAT}, finish_reason="error"}}',
    ),
    Objective(
        "TritonChatGatewayErrors",
        "triton_chat:gateway_errors",
        "The gateway of demo returns server errors.",
        "of the requests got a status of 500 or above (track stable); the objective is 1% at most.",
        0.01,
        good=f'triton_chat_gateway_requests_total{{{_GATEWAY}, route="/v1/completions", method="POST", status="200"}}',
        bad=f'triton_chat_gateway_requests_total{{{_GATEWAY}, route="/v1/completions", method="POST", status="503"}}',
        others=tuple(
            f'triton_chat_gateway_requests_total{{{_GATEWAY}, route="/health/ready", method="GET", status="{status}"}}'
            for status in (200, 503)
        ),
        labels={},
    ),
)


Phases = list[tuple[int, float]]
"""So many minutes with so many percent of the requests bad."""


def tests(objective: Objective) -> dict[str, Any]:
    budget = 100 * objective.budget
    outage: Phases = [(360, 0), (60, 100), (60, 0)]
    slow: Phases = [(360, 0), (330, 10 * budget)]
    return _document(
        "1m",
        _test(objective, "All is bad for an hour, after six hours without a fault.", outage, range(361, 480)),
        _test(objective, "Ten times as many are bad as may be.", slow, range(372, 690, 6)),
        _test(objective, "Bad from the start.", [(60, 14.4 * budget + 2)], range(60)),
        _test(
            objective, "As many are bad as may be, but for a few.", [(100, 0.9 * budget)], [15, 30, 100], silent=True
        ),
        _test(objective, "All is bad, but few ask.", [(4, 100)], [4, 8], per_minute=1, silent=True),
        _test(objective, "All is bad, and just enough ask.", [(6, 100)], [9], per_minute=1),
        _test(objective, "Just started, and idle.", [(100, 0)], [1, 2, 50, 100], per_minute=0, silent=True),
    )


def slow_tests(objective: Objective) -> dict[str, Any]:
    """Of the window of three days, with a step of five minutes."""
    phases: Phases = [(4320, 0), (2400, 200 * objective.budget)]
    times = range(4320, 6720, 60)
    return _document("5m", _test(objective, "Twice as many are bad as may be.", phases, times, step=5))


def firing(objective: Objective, phases: Phases, time: int) -> dict[str, float]:
    """What should fire in that minute: the bad part in percent, by severity. Source: Site Reliability Workbook, 5."""

    def above(minute: int, factor: float, *windows: int) -> bool:
        shares = [_share(phases, minute, window) for window in windows]
        return all(share is not None and share > factor * objective.budget + 1e-9 for share in shares)

    def fast(minute: int) -> bool:
        return above(minute, 14.4, 60, 5)

    def page(minute: int) -> bool:
        return fast(minute) or above(minute, 6, 360, 30)

    def ticket(minute: int) -> bool:
        return above(minute, 1, 4320, 360)

    found = {}
    if all(page(minute) for minute in range(time - 2, time + 1)):
        found["critical"] = _share(phases, time, 60 if fast(time) else 360)
    if all(ticket(minute) for minute in range(time - 15, time + 1)):
        found["warning"] = _share(phases, time, 4320)
    return {severity: 100 * share for severity, share in found.items() if share is not None}


def _share(phases: Phases, time: int, window: int) -> float | None:
    """The bad part of the requests in the minutes of a window; None where too few are known for a rate."""
    end, bad, known = 0, 0.0, 0
    for minutes, percent in phases:
        begin, end = end, end + minutes
        inside = max(0, min(end, time) - max(begin, time - window, 0))
        bad, known = bad + inside * percent / 100, known + inside
    return bad / known if known else None


def _document(step: str, *tests: dict[str, Any]) -> dict[str, Any]:
    return {"rule_files": ["rules.yaml"], "evaluation_interval": step, "tests": list(tests)}


def _test(
    objective: Objective,
    name: str,
    phases: Phases,
    times: Iterable[int],
    *,
    per_minute: int = 1000,
    step: int = 1,
    silent: bool = False,
) -> dict[str, Any]:
    """What fires at the given minutes. `silent`: nothing ever does."""
    expected = {time: {} if silent else firing(objective, phases, time) for time in times}
    assert silent or any(expected.values())
    return {
        "name": name,
        "interval": f"{step}m",
        "input_series": list(_series(objective, phases, per_minute, step)),
        "alert_rule_test": [
            {
                "eval_time": f"{time}m",
                "alertname": objective.alert,
                "exp_alerts": [_alert(objective, severity, percent) for severity, percent in alerts.items()],
            }
            for time, alerts in expected.items()
        ],
    }


def _series(objective: Objective, phases: Phases, per_minute: int, step: int) -> Iterator[dict[str, str]]:
    """Those that count, of one pod and of another with three times as many requests, and others that must not."""
    bad = [(minutes // step, round(step * per_minute * percent / 100)) for minutes, percent in phases]
    good = [(steps, step * per_minute - count) for steps, count in bad]
    total = [(steps, step * per_minute) for steps, _ in bad]
    for series, counts in ((objective.good, good), (objective.bad, bad), (objective.total, total)):
        if series:
            yield {"series": series, "values": _counted(counts)}
            yield {"series": series.replace("-1", "-2"), "values": _counted([(steps, 3 * n) for steps, n in counts])}
    for series in objective.others:
        yield {"series": series, "values": _counted([(steps, 5000 * step) for steps, _ in bad])}


def _counted(steps: list[tuple[int, int]]) -> str:
    """A counter that begins at 0 and grows for so many steps by so much, as promtool writes it."""
    value, parts = 0, ["0"]
    for number, step in steps:
        parts.append(f"{value + step}+{step}x{number - 1}")
        value += number * step
    return " ".join(parts)


def _alert(objective: Objective, severity: str, percent: float) -> dict[str, Any]:
    labels = {"severity": severity, "namespace": "serving", "release": "demo", "track": "stable", **objective.labels}
    annotations = {
        "summary": objective.summary,
        "description": f"{percent:.4g}% {objective.words}",
        "runbook_url": f"docs/runbook.md#{objective.alert.lower()}",
    }
    return {"exp_labels": labels, "exp_annotations": annotations}
