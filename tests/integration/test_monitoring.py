"""Every metric that an alert, the dashboard or an autoscaler asks for exists on a real server and gateway, and moves.

A real Prometheus scrapes both under a load that makes all of it move, and evaluates the rules of the chart. The server
has a small KV cache, few places and a short queue, and its engine can be told to fail.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from local.gateway import LocalGateway
from local.triton import LocalTriton
from tests.helm.objects import Objects
from tests.integration.calls import CALL_S, Stream, children, connect, eventually, request, settled
from tests.integration.openai_calls import options
from tests.integration.prometheus import Prometheus, Series, Target, prometheus
from tests.integration.servers import REPOSITORY, GatewayFactory, ServerFactory, changed_copy
from tests.integration.test_engine_failure import BROKEN_RUNNER
from tests.monitoring import grafana
from tests.monitoring.chart import NAMESPACE, RELEASE, alerts, dashboard, groups, rendered
from tests.monitoring.page import adapter_rules
from tests.monitoring.promql import Selector, metrics, selectors

ENGINE = {"threads": 1, "max_sequences": 4, "max_model_len": 1024, "kv_cache_tokens": 1280, "max_step_tokens": 64}
FULL = {"max_tokens": 1000, "ignore_eos": True, "temperature": 0}
"""Four of these do not fit into the KV cache."""

LIMITS = {"max_queue_size: 256": "max_queue_size: 2"}
GATE = """

import threading

_run_when_open = ModelRunner.run


def _run_at_the_gate(self, rows):
    while pathlib.Path(os.environ["WAIT_WHILE_THERE"]).exists():
        threading.Event().wait(0.02)
    return _run_when_open(self, rows)


ModelRunner.run = _run_at_the_gate
_stop_server = lambda: None
"""
"""Steps wait while a file is there, so that what runs then goes on running. The server outlives its engine, so that
Prometheus can read what a failure did to the metrics."""

VARIABLES = {**grafana.VARIABLES, "model": "chat|embeddings"}
KEDA = {"type": "keda", "prometheusAddress": "http://prometheus:9090"}

NOT_HERE = {
    "kube_deployment_spec_replicas": "of kube-state-metrics",
    "kube_deployment_status_replicas_available": "of kube-state-metrics",
    "kube_pod_container_status_last_terminated_reason": "of kube-state-metrics",
    "kube_pod_container_status_restarts_total": "of kube-state-metrics",
    "kube_pod_init_container_status_restarts_total": "of kube-state-metrics",
    "nv_gpu_memory_total_bytes": "needs a GPU",
    "nv_gpu_memory_used_bytes": "needs a GPU",
    "nv_gpu_power_usage": "needs a GPU",
    "nv_gpu_utilization": "needs a GPU",
}
"""What is asked for and cannot be here, with the reason; all else must be here."""


def asked_for() -> list[str]:
    """All expressions of the chart, and of the documentation."""
    scaled = rendered({"triton": {"autoscaling": KEDA}}).one("ScaledObject", "-triton")
    return [
        *(rule["expr"] for group in groups() for rule in group["rules"]),
        *grafana.expressions(dashboard(), VARIABLES),
        *(trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]),
        *(adapted(rule) for rule in adapter_rules()),
    ]


def adapted(rule: dict[str, Any]) -> str:
    """The query that prometheus-adapter makes of a rule, for the pods of Triton."""
    series = re.match(r"\w+", rule["seriesQuery"])
    assert series
    return (
        str(rule["metricsQuery"])
        .replace("<<.Series>>", series[0])
        .replace("<<.LabelMatchers>>", f'namespace="{NAMESPACE}",pod=~"{TRITON_POD}|another"')
        .replace("<<.GroupBy>>", "pod")
    )


TRITON_POD = f"{RELEASE}-triton-chat-triton-5d9c7b8f4-x7k2p"
GATEWAY_POD = f"{RELEASE}-triton-chat-gateway-7c6b5d4f9-q4w8z"


def target(component: str, pod: str, url: str, objects: Objects) -> Target:
    """As Prometheus Operator makes it of the chart's PodMonitor."""
    monitor = objects.one("PodMonitor", f"-{component}")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    meta = {
        f"__meta_kubernetes_pod_label_{re.sub('[^a-z0-9_]', '_', name)}": value
        for name, value in objects.pod(component).labels.items()
    }
    return Target(url, {"namespace": NAMESPACE, "pod": pod, "container": component, **meta}, endpoint["relabelings"])


class Load:
    """What the server and the gateway are put through, step by step."""

    def __init__(self, triton: LocalTriton, gateway: LocalGateway, seen: Prometheus) -> None:
        self._triton, self._gateway, self._prometheus = triton, gateway, seen

    def short_requests(self) -> None:
        """One prompt of several blocks again and again, texts, and a request that is refused."""
        prompt = "one two three four five six seven eight nine ten " * 3
        with OpenAI(**options(self._gateway)) as client:
            self._post_seen(200, prompt=prompt, max_tokens=3)
            for _ in range(25):
                client.completions.create(model="chat", prompt=prompt, max_tokens=3)
            client.embeddings.create(model="embeddings", input=["a cat", "a kitten"])
        assert self._post("/tokenize", prompt="a cat") == 200
        assert self._post("/v1/completions", prompt="a", max_tokens=-1) == 400

    def more_than_fits(self) -> None:
        """Sequences until the KV cache is full and some are put back; then all callers leave."""
        with connect(self._triton) as stub:
            streams = [Stream(stub, request(text_input=str(n), sampling_parameters=FULL)) for n in range(4)]
            self._sees("triton_chat_preemptions_total > 0")
            for stream in streams:
                stream.cancel()
        settled(self._triton)

    def full_house(self, gate: Path) -> None:
        """All places are taken and the queue is full: some wait too long, and more are refused."""
        with connect(self._triton) as stub, self._stream("/v1/completions", prompt="Once", **FULL):
            streams = [Stream(stub, request(text_input=str(n), sampling_parameters=FULL)).started() for n in range(3)]
            gate.touch()
            self._sees("triton_chat_requests_running > 1")
            self._sees("triton_chat_gateway_open_streams > 0")
            self._sees(expression("TritonChatEngineStuck").replace("> 60", "> 2"))
            streams.append(Stream(stub, request(text_input="Once", sampling_parameters=FULL)))  # until there is a place
            impatient = [Stream(stub, request(text_input="Once", timeout_s=0.2)) for _ in range(2)]
            self._sees('nv_inference_request_failure{model="chat", reason="REJECTED"} > 0')
            streams += [Stream(stub, request(text_input="Once", sampling_parameters=FULL)) for _ in range(14)]
            self._sees('nv_inference_pending_request_count{model="chat"} == 2')
            self._post_seen(429, prompt="Once")
            assert self._post("/v1/completions", prompt="Once") == 429
            gate.unlink()
            for stream in streams:
                stream.cancel()
            assert "Request timeout expired" in {stream.wait().error for stream in impatient}
        settled(self._triton)

    def failure(self, trigger: Path) -> None:
        """The engine fails while sequences run; from then on the gateway answers with 503."""
        with connect(self._triton) as stub:
            streams = [Stream(stub, request(text_input="Once", sampling_parameters=FULL)).started() for _ in range(4)]
            trigger.touch()
            assert all("the engine failed" in stream.wait(10).error for stream in streams)
        self._post_seen(503, prompt="a")
        assert [self._post("/v1/completions", prompt="a") for _ in range(20)] == [503] * 20
        self._sees('triton_chat_requests_total{finish_reason="error"} == 4')
        self._sees('triton_chat_gateway_requests_total{status="503"} == 21')

    def death(self) -> None:
        """The model's process dies; Triton goes on as if nothing had happened."""
        (stub,) = [pid for pid in children(self._triton.pid) if b"/chat/1/model.py" in cmdline(pid)]
        os.kill(stub, signal.SIGKILL)
        self._sees(expression("TritonChatModelSilent").replace("> 60", "> 2"))

    @contextmanager
    def _stream(self, path: str, **fields: object) -> Iterator[None]:
        """While the block lasts, and the answer."""
        body = {"model": "chat", "stream": True, **fields}
        with httpx2.stream("POST", self._gateway.url + path, json=body, timeout=CALL_S) as answer:
            assert answer.status_code == 200
            yield

    def _post_seen(self, status: int, **fields: object) -> None:
        """The first with this status, until Prometheus has seen it: it cannot know that a new counter began at 0."""
        assert self._post("/v1/completions", **fields) == status
        self._sees(f'triton_chat_gateway_requests_total{{route="/v1/completions", status="{status}"}} == 1')

    def _post(self, path: str, **fields: object) -> int:
        return httpx2.post(self._gateway.url + path, json={"model": "chat", **fields}, timeout=CALL_S).status_code

    def _sees(self, expression: str) -> None:
        eventually(lambda: self._prometheus.query(expression), within=30)


def expression(alert: str) -> str:
    (found,) = [rule["expr"] for rule in alerts() if rule["alert"] == alert]
    return str(found)


def cmdline(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


@pytest.fixture(scope="module")
def seen(able_to_serve: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has watched all of it, and before that an idle server with no alert pending."""
    folder = tmp_path_factory.mktemp("monitoring")
    servers, gateways = ServerFactory(folder), GatewayFactory(folder)
    try:
        files = {"FAIL_WHEN_THERE": str(folder / "fail"), "WAIT_WHILE_THERE": str(folder / "gate")}
        triton = servers(ENGINE, files, repository=fragile(folder / "repository"))
        gateway = gateways(triton)
        objects = rendered()
        targets = [
            target("triton", TRITON_POD, triton.metrics_url, objects),
            target("gateway", GATEWAY_POD, gateway.metrics_url, objects),
        ]
        with prometheus(folder / "prometheus", groups(), targets) as watching:
            eventually(lambda: len(watching.query("up == 1")) == 2, within=30)
            eventually(lambda: not watching.alerts(), within=10)
            watching.note_the_time()
            load = Load(triton, gateway, watching)
            load.short_requests()
            load.more_than_fits()
            load.full_house(folder / "gate")
            load.failure(folder / "fail")
            load.death()
            triton.stop()
            eventually(lambda: watching.alerts() >= {"TritonChatDown", "TritonChatTargetDown"}, within=30)
            yield watching
    finally:
        gateways.stop_all()
        servers.stop_all()


def fragile(folder: Path) -> Path:
    """The repository, with a short queue, and an engine that waits or fails when it is told to."""
    changed_copy(REPOSITORY, folder, {"chat": LIMITS})
    with (folder / "chat" / "1" / "model.py").open("a") as model:
        model.write(BROKEN_RUNNER + GATE)
    return folder


def test_what_is_not_here_is_all_that_is_missing(seen: Prometheus) -> None:
    here = {series["metric"]["__name__"] for series in seen.query('last_over_time({__name__=~".+"}[1h])')}
    assert metrics(asked_for()) - here == set(NOT_HERE)


def test_every_selector_finds_something_that_moves(seen: Prometheus) -> None:
    wanted = {selector for selector in selectors(*asked_for()) if selector.metric not in NOT_HERE}
    assert len(wanted) > 60
    missing = sorted(one.text for one in wanted if not seen.query(f"last_over_time({one.text}[1h])"))
    assert not missing
    still = sorted(one.text for one in wanted if not moves(seen, one))
    assert not still


def moves(seen: Prometheus, selector: Selector) -> bool:
    """Whether a value has changed, or was not there yet when nothing had been asked."""
    changed = f"changes({selector.text}[1h]) > 0"
    came = f"last_over_time({selector.text}[1h]) unless {selector.text} @ {seen.noted_at}"
    return bool(seen.query(f"({changed}) or ({came})"))


def test_every_rule_could_be_evaluated(seen: Prometheus) -> None:
    found = seen.rules()
    assert len(found) == sum(len(group["rules"]) for group in groups())
    assert {rule["health"] for rule in found} == {"ok"}, [rule for rule in found if rule["health"] != "ok"]


def test_the_ratios_are_those_of_the_load(seen: Prometheus) -> None:
    """Of the engine 4 errors beside some 40 other requests, of the gateway 20 beside 30."""
    (engine,) = seen.query('last_over_time(triton_chat:engine_errors:ratio_rate1h{model="chat"}[1h])')
    assert 0.05 < value(engine) < 0.15
    (gateway,) = seen.query("last_over_time(triton_chat:gateway_errors:ratio_rate1h[1h])")
    assert 0.2 < value(gateway) < 0.8


def test_the_alerts_of_the_load_were_pending_and_no_others(seen: Prometheus) -> None:
    """A busy machine may be slow. TritonChatAbsent is pending until the first scrape, too."""
    ever = {series["metric"]["alertname"] for series in seen.query("last_over_time(ALERTS[1h])")}
    due = {"TritonChatQueueTimeouts", "TritonChatGatewayRefusing", "TritonChatEngineErrors", "TritonChatGatewayErrors"}
    due |= {"TritonChatDown", "TritonChatAbsent", "TritonChatTargetDown"}
    slow = {"TritonChatFirstTokenSlow", "TritonChatOutputTokensSlow", "TritonChatPreempting"}
    assert due <= ever <= due | slow


def test_the_labels_are_those_of_the_rules(seen: Prometheus) -> None:
    (up,) = seen.query('up{container="triton"}')
    wanted = {"namespace": NAMESPACE, "release": RELEASE, "track": "stable", "pod": TRITON_POD}
    assert wanted.items() <= up["metric"].items()


def value(series: Series) -> float:
    return float(series["value"][1])
