"""What cannot work is refused before it is installed, with a sentence that names the value."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from tests.helm.cases import defaults
from tests.helm.engines import Helm3, Helm4, refusal

PARENTS = [{"name": "public"}]


@dataclass(frozen=True)
class Bad:
    """Values, and words of the message. A word with dots is a path; Helm 4's schema writes it with slashes."""

    name: str
    values: dict[str, Any] = field(hash=False)
    words: tuple[str, ...]

    def is_told(self, message: str) -> bool:
        return all(word in message or f"/{word.replace('.', '/')}'" in message for word in self.words)


def bad(name: str, values: dict[str, Any], *words: str) -> Bad:
    return Bad(name, values, words)


def autoscaling(**settings: Any) -> dict[str, Any]:
    return {"triton": {"autoscaling": settings}}


def extra_model(**settings: Any) -> dict[str, Any]:
    return {"extraModels": [{"name": "small", "model": {"source": "embedded"}} | settings]}


def canary(model: dict[str, Any]) -> dict[str, Any]:
    return {"canary": {"enabled": True, "weight": 0, "model": model}}


WRITTEN: dict[str, dict[str, Any]] = {
    "hub": {"hub": {"id": "a/b"}},
    "s3": {"s3": {"uri": "s3://b/p"}},
    "pvc": {"pvc": {"claimName": "c"}},
    "hostPath": {"hostPath": {"path": "/p"}},
    "image": {"image": {"reference": "r:1"}},
}
"""Each kind of source as a user writes it, but for the word itself."""

SPELLING = [
    bad("top-level key", {"replicaCount": 2}, "replicaCount"),
    bad("nested key", {"triton": {"autoscaling": {"minReplica": 2}}}, "triton.autoscaling", "minReplica"),
    bad("key of a map on one line", {"triton": {"gpu": {"counts": 1}}}, "triton.gpu", "counts"),
    bad("key of an extra model", extra_model(modle={}), "extraModels", "modle"),
    bad("wrong type", {"drainSeconds": "60s"}, "drainSeconds"),
    bad("a string for a switch", {"ui": {"enabled": "yes"}}, "ui.enabled"),
    bad("a number for a name", {"triton": {"gpu": {"resource": 1}}}, "triton.gpu.resource"),
    bad("out of range", {"triton": {"gpu": {"count": -1}}}, "triton.gpu.count"),
    bad("unknown source", {"model": {"source": "ftp"}}, "model.source", "hub"),
    bad("unknown scrape", {"monitoring": {"scrape": "annotations"}}, "monitoring.scrape"),
    bad("unknown storage", {"storage": {"type": "nfs"}}, "storage.type"),
    bad("unknown access mode", {"storage": {"accessMode": "RWX"}}, "storage.accessMode"),
    bad("wrong quantity", {"triton": {"shmSize": "1 GB"}}, "triton.shmSize"),
    bad("unknown engine", {"engine": {"engine": "vlm"}}, "engine.engine"),
    bad("vLLM's arguments as a number", {"engine": {"vllm": 4}}, "engine.vllm"),
    bad("an adapter as a word", {"adapters": {"sql": "a/b"}}, "adapters.sql"),
    bad("a misspelt source of an adapter", {"adapters": {"sql": {"sauce": "hub"}}}, "adapters.sql", "sauce"),
    bad("no machine", {"triton": {"nodes": 0}}, "triton.nodes"),
    bad("wrong interval", {"monitoring": {"interval": "15"}}, "monitoring.interval"),
]

AUTOSCALING = [
    bad("unknown kind", autoscaling(type="vpa"), "triton.autoscaling.type"),
    bad("both kinds", autoscaling(type=["hpa", "keda"]), "triton.autoscaling.type"),
    bad("both kinds as switches", autoscaling(hpa={"enabled": True}), "triton.autoscaling", "hpa"),
    bad("no metric", autoscaling(type="hpa", waitingRequests=0, kvCachePercent=0), "triton.autoscaling.type"),
    bad(
        "keda without a metric",
        autoscaling(type="keda", prometheusAddress="http://p:9090", waitingRequests=0, kvCachePercent=0),
        "triton.autoscaling.waitingRequests",
    ),
    bad("keda without Prometheus", autoscaling(type="keda"), "triton.autoscaling.prometheusAddress"),
    bad("wrong Prometheus", autoscaling(prometheusAddress="prometheus:9090"), "triton.autoscaling.prometheusAddress"),
    bad("more than the most", autoscaling(type="hpa", minReplicas=5), "triton.autoscaling.minReplicas", "5"),
    bad(
        "more gateways than the most",
        {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 20}}},
        "gateway.autoscaling.minReplicas",
    ),
    bad(
        "a rollout without a step",
        {"triton": {"strategy": {"maxSurge": 0, "maxUnavailable": 0}}},
        "triton.strategy.maxUnavailable",
    ),
]

CHECKPOINTS = [
    bad("no hub id", {"model": {"hub": {"id": ""}}}, "model.hub.id"),
    bad("no S3 address", {"model": {"source": "s3"}}, "model.s3.uri"),
    bad("wrong S3 address", {"model": {"source": "s3", "s3": {"uri": "https://b/p"}}}, "model.s3.uri"),
    bad("no claim", {"model": {"source": "pvc"}}, "model.pvc.claimName"),
    bad("no host path", {"model": {"source": "hostPath"}}, "model.hostPath.path"),
    bad("no image", {"model": {"source": "image"}}, "model.image.reference"),
    bad("none for an extra model", extra_model(model={"source": "hub"}), "extraModels[0].model.hub.id"),
    bad("none for the embeddings", {"embeddings": {"model": {"source": "s3"}}}, "embeddings.model.s3.uri"),
    bad(
        "none for the canary",
        {"canary": {"enabled": True, "weight": 0, "model": {"source": "pvc"}}},
        "canary.model.pvc.claimName",
    ),
    *[
        bad(
            f"{kind} beside a canary's source",
            canary({"source": "embedded"} | written),
            f"canary.model.{kind}.{next(iter(written[kind]))}",
            "canary.model.source",
        )
        for kind, written in WRITTEN.items()
    ],
    *[
        bad(
            f"{kind} for a canary without saying so",
            {"model": {"source": "embedded"}} | canary(written),
            f"canary.model.{kind}.{next(iter(written[kind]))}",
            "but model.source is",
        )
        for kind, written in WRITTEN.items()
    ],
    *[
        bad(
            f"a canary of another kind, {kind}, without a checkpoint",
            {"model": {"source": "embedded"}} | canary({"source": kind}),
            f"canary.model.{kind}.{next(iter(written[kind]))}",
        )
        for kind, written in WRITTEN.items()
    ],
    bad(
        "a canary's repository with the commit of another",
        {"model": {"hub": {"revision": "a" * 40}}} | canary({"hub": {"id": "a/b"}}),
        "canary.model.hub.id",
        "canary.model.hub.revision",
    ),
    bad(
        "hub beside the source of an extra model",
        extra_model(model={"source": "embedded", "hub": {"id": "a/b"}}),
        "extraModels[0].model.hub.id",
        "extraModels[0].model.source",
    ),
    bad(
        "one writer, two pods",
        {"storage": {"type": "pvc"}, "triton": {"replicas": 2}},
        "storage.accessMode",
        "ReadWriteMany",
    ),
    bad(
        "one writer, autoscaling",
        {"storage": {"type": "pvc"}, **autoscaling(type="hpa")},
        "storage.accessMode",
        "ReadWriteMany",
    ),
    bad(
        "one writer, a surge",
        {"storage": {"type": "pvc"}, "triton": {"strategy": {"maxSurge": 1}}},
        "storage.accessMode",
        "triton.strategy.maxSurge",
    ),
    bad(
        "one writer, a canary that downloads too",
        {
            "storage": {"type": "pvc"},
            "model": {"source": "hub", "hub": {"id": "a/b"}},
            **canary({"source": "s3", "s3": {"uri": "s3://b/p"}}),
        },
        "storage.accessMode",
        "ReadWriteMany",
    ),
    bad(
        "one writer, a canary of two pods, which alone downloads",
        {
            "storage": {"type": "pvc"},
            "model": {"source": "embedded"},
            "canary": {"enabled": True, "weight": 0, "replicas": 2, "model": {"source": "hub", "hub": {"id": "a/b"}}},
        },
        "storage.accessMode",
        "ReadWriteMany",
    ),
    bad(
        "one writer, a canary",
        {"storage": {"type": "pvc"}, "canary": {"enabled": True, "weight": 0}},
        "storage.accessMode",
        "ReadWriteMany",
    ),
]

ONE_HOME = [
    bad("drain of the engine", {"engine": {"drain_seconds": 10}}, "engine.drain_seconds", "drainSeconds"),
    bad("model of the engine", {"engine": {"model": "a/b"}}, "engine.model", "model.source"),
    bad("device of the engine", {"engine": {"device": "cpu"}}, "engine.device", "triton.gpu.count"),
    bad("model of a canary's engine", {"canary": {"engine": {"model": "a/b"}}}, "canary.engine.model"),
    bad("drain of an extra engine", extra_model(engine={"drain_seconds": 1}), "extraModels[0].engine.drain_seconds"),
    bad("model of the embedder", {"embeddings": {"config": {"model": "a/b"}}}, "embeddings.config.model"),
    bad("too short a grace period", {"terminationGracePeriodSeconds": 79}, "terminationGracePeriodSeconds", "79", "80"),
    *[
        bad(f"gateway setting {name}", {"gateway": {"settings": {name: "1"}}}, f"gateway.settings.{name}")
        for name in ("HOST", "PORT", "TRITON_URL", "DRAIN_TIMEOUT", "API_KEYS", "API_KEYS_FILE")
    ],
    bad("unknown gateway setting", {"gateway": {"settings": {"REQUEST_TIMOUT": 1}}}, "gateway.settings.REQUEST_TIMOUT"),
    bad("lower-case gateway setting", {"gateway": {"settings": {"request_timeout": 1}}}, "request_timeout"),
    bad("extra model chat", extra_model(name="chat"), "extraModels[0].name", "chat"),
    bad("extra model embeddings", extra_model(name="embeddings"), "extraModels[0].name", "embeddings"),
    bad("extra model vllm_model", extra_model(name="vllm_model"), "extraModels[0].name", "vllm_model"),
    bad(
        "extra model twice",
        {"extraModels": [{"name": "small", "model": {"source": "embedded"}}] * 2},
        "extraModels[1].name",
        "small",
    ),
    bad(
        "extra models whose containers have one name",
        {"extraModels": [{"name": name, "model": {"source": "embedded"}} for name in ("llama3.1", "Llama3-1")]},
        "extraModels[1].name",
        "Llama3-1",
    ),
    bad("extra model with a long name", extra_model(name="m" * 51), "extraModels"),
    bad("more GPUs than an engine uses", {"triton": {"gpu": {"count": 2}}}, "triton.gpu.count"),
    bad("source beside the source", {"model": {"pvc": {"claimName": "c"}}}, "model.pvc.claimName", "model.source"),
    bad("claim that is not used", {"storage": {"existingClaim": "c"}}, "storage.existingClaim", "storage.type"),
    bad(
        "embeddings that are off",
        {"embeddings": {"enabled": False, "config": {"dtype": "float16"}}},
        "embeddings.config",
        "embeddings.enabled",
    ),
    bad("extra model with a path", extra_model(name="a/b"), "extraModels"),
    bad("extra model without a name", {"extraModels": [{"model": {"source": "embedded"}}]}, "name"),
]

DOORS = [
    bad("ingress without a gateway", {"gateway": {"enabled": False}, "ingress": {"enabled": True}}, "ingress.enabled"),
    bad("page without a gateway", {"gateway": {"enabled": False}, "ui": {"enabled": True}}, "ui.enabled"),
    bad(
        "route without a gateway",
        {"gateway": {"enabled": False}, "httpRoute": {"enabled": True, "parentRefs": PARENTS}},
        "httpRoute.enabled",
    ),
    bad("route without a parent", {"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    bad("gRPC route without a parent", {"grpcRoute": {"enabled": True}}, "grpcRoute.parentRefs"),
    bad("page's host without the page", {"ingress": {"enabled": True, "uiHost": "chat.example.com"}}, "ingress.uiHost"),
    bad("weight without a route", {"canary": {"enabled": True, "weight": 10}}, "canary.weight", "httpRoute"),
    bad(
        "weight above 100",
        {"canary": {"enabled": True, "weight": 101}, "httpRoute": {"enabled": True, "parentRefs": PARENTS}},
        "canary.weight",
    ),
    bad(
        "gRPC route that nothing passes",
        {"grpcRoute": {"enabled": True, "parentRefs": PARENTS}},
        "grpcRoute.enabled",
        "networkPolicy.tritonClients",
    ),
    bad(
        "load balancer that nothing passes",
        {"triton": {"service": {"type": "LoadBalancer"}}},
        "triton.service.type",
        "networkPolicy.tritonClients",
    ),
    bad("weight below 0", {"canary": {"weight": -1}}, "canary.weight"),
    bad(
        "objective between two buckets",
        {"monitoring": {"rules": {"enabled": True, "timeToFirstToken": {"seconds": 2.7}}}},
        "monitoring.rules.timeToFirstToken.seconds",
    ),
    bad(
        "objective per token between two buckets",
        {"monitoring": {"rules": {"enabled": True, "timePerOutputToken": {"seconds": 0.11}}}},
        "monitoring.rules.timePerOutputToken.seconds",
    ),
    bad(
        "percentage above 100",
        {"monitoring": {"rules": {"timeToFirstToken": {"percent": 101}}}},
        "monitoring.rules.timeToFirstToken.percent",
    ),
]

EVERY = [*SPELLING, *AUTOSCALING, *CHECKPOINTS, *ONE_HOME, *DOORS]
every = pytest.mark.parametrize("wrong", EVERY, ids=lambda one: one.name)


def test_the_values_around_are_good(helm4: Helm4, helm3: Helm3):
    """Otherwise what is refused below could be refused for another reason."""
    assert helm4.lint(defaults()) == helm3.lint(defaults()) == []


@every
def test_template_refuses(wrong: Bad, helm4: Helm4):
    message = refusal(lambda: helm4.render(wrong.values))
    assert wrong.is_told(message), message or "it was rendered"


@every
def test_lint_refuses(wrong: Bad, helm4: Helm4):
    message = "\n".join(helm4.lint(wrong.values))
    assert wrong.is_told(message), message or "nothing was found"


@every
def test_helm_3_refuses(wrong: Bad, helm3: Helm3):
    for message in (refusal(lambda: helm3.render(wrong.values)), "\n".join(helm3.lint(wrong.values))):
        assert wrong.is_told(message), message or "it was let through"


def test_metrics_can_be_turned_off_by_null_too(helm4: Helm4, helm3: Helm3):
    """`helm lint` alone takes the default for a null."""
    for helm in (helm4, helm3):
        none = autoscaling(type="hpa", waitingRequests=None, kvCachePercent=None)
        assert "triton.autoscaling.type" in refusal(partial(helm.render, none))
        (scaler,) = helm.render(autoscaling(type="hpa", waitingRequests=None)).of("HorizontalPodAutoscaler")
        assert len(scaler["spec"]["metrics"]) == 1


def test_all_that_is_wrong_is_said_at_once(helm4: Helm4):
    message = refusal(lambda: helm4.render({"engine": {"model": "a/b"}, "terminationGracePeriodSeconds": 1}))
    assert "engine.model" in message
    assert "terminationGracePeriodSeconds" in message


def test_an_older_kubernetes_is_refused(helm3: Helm3):
    """Helm itself compares it with Chart.yaml."""
    assert ">=1.28" in refusal(lambda: helm3.render({}, kubernetes="1.27"))
