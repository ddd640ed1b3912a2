"""docs/wire.md and docs/metrics.md list what the code has: tensors, error codes, metrics."""

from __future__ import annotations

import re

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from chat_engine import tokenizer
from chat_engine.errors import FAMILY, ChatError, to_wire
from chat_engine.reading.chat_parameters import ChatParameters
from chat_engine.service.metrics import FAMILIES
from chat_gateway.errors import from_client
from chat_gateway.http.metrics import Metrics
from embedder.parse import PARAMETERS as EMBEDDINGS_PARAMETERS
from local.options import ROOT
from triton_chat import errors as client_errors

WIRE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
GATEWAY = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
REPOSITORY = ROOT / "model_repository"


def section(page: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    return page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def table(text: str, head: str) -> list[list[str]]:
    """The rows of the table whose first column has this head."""
    found = re.search(rf"^\| {head} \|.*\n\|[ |-]+\|\n((?:\|.*\|\n?)+)", text, re.MULTILINE)
    assert found, head
    return [[cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in found[1].splitlines()]


@pytest.mark.parametrize("model", ["chat", "chat_unary", "vllm_model", "tokenizer", "embeddings"])
def test_the_tensors_are_those_of_the_model(model: str) -> None:
    config = text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    text = section(WIRE, "chat and chat_unary" if model in ("chat", "chat_unary") else model)
    for head, tensors in (("input", config.input), ("output", config.output)):
        types = {t.name: model_config_pb2.DataType.Name(t.data_type).removeprefix("TYPE_") for t in tensors}
        listed = {name: kind.replace("BYTES", "STRING") for name, kind, _ in table(text, head)}
        assert listed == types


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("chat and chat_unary", tuple(ChatParameters.model_fields)),
        ("tokenizer", tokenizer.OPTIONS),
        ("embeddings", EMBEDDINGS_PARAMETERS),
    ],
)
def test_the_parameters_are_those_of_the_model(heading: str, names: tuple[str, ...]) -> None:
    listed = set(re.findall(r"`(\w+)`", section(WIRE, heading)))
    assert set(names) - listed == set()


def test_how_many_requests_vllm_model_forwards() -> None:
    source = (REPOSITORY / "vllm_model" / "1" / "model.py").read_text(encoding="utf-8")
    (places,) = re.findall(r"^_REQUESTS_IN_FLIGHT = (\d+)$", source, re.MULTILINE)
    assert f"{places} requests are forwarded at a time" in " ".join(ARCHITECTURE.split())


def test_the_codes_of_errors_are_those_of_the_family() -> None:
    assert {row[0] for row in table(section(WIRE, "Errors"), "code")} == {kind.code for kind in FAMILY}


@pytest.mark.parametrize("kind", FAMILY)
def test_the_statuses_of_an_error(kind: type[ChatError]) -> None:
    rows = {code: (grpc, int(http)) for code, _, grpc, http in table(section(WIRE, "Errors"), "code")}
    gateway = from_client(client_errors.from_text(to_wire(kind("a sentence"))), retry_after=1)
    assert rows[kind.code] == (grpc_status(kind), gateway.status)


@pytest.mark.parametrize("kind", FAMILY)
def test_the_gateways_code_for_an_error_is_told_of(kind: type[ChatError]) -> None:
    gateway = from_client(client_errors.from_text(to_wire(kind("a sentence"))), retry_after=1)
    gone = gateway.status == 499  # for the log alone
    assert gone or gateway.code in re.findall(r"`([a-z_]+)`", section(GATEWAY, "Errors"))


def grpc_status(kind: type[ChatError]) -> str:
    """That `triton_io.errors` sets: the module needs Triton's Python backend, so its table is read from the source."""
    source = (REPOSITORY / "chat" / "1" / "triton_io" / "errors.py").read_text(encoding="utf-8")
    statuses: dict[str, str] = dict(re.findall(r'^    errors\.(\w+): "([A-Z_]+)",$', source, re.MULTILINE))
    found = next(statuses[base.__name__] for base in kind.__mro__ if base.__name__ in statuses)
    return {"INVALID_ARG": "INVALID_ARGUMENT"}.get(found, found)


def test_the_metrics_of_the_engine() -> None:
    listed = {name: kind for name, kind, _ in table(section(METRICS, "The engine"), "metric")}
    assert listed == {family.name: family.kind for family in FAMILIES}


def test_the_metrics_of_embeddings() -> None:
    source = (REPOSITORY / "embeddings" / "1" / "model.py").read_text(encoding="utf-8")
    families = dict(re.findall(r'^ +\("(\w+)", "[^"]*", (counter|histogram)\),$', source, re.MULTILINE))
    listed = {name: kind for name, kind, _ in table(section(METRICS, "Embeddings"), "metric")}
    assert listed == {f"triton_chat_embeddings_{name}": kind for name, kind in families.items()}


def test_the_metrics_of_the_gateway() -> None:
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in Metrics().registry.collect()
        if family.name.startswith("triton_chat_gateway_")
    }
    assert {name: kind for name, kind, *_ in table(section(METRICS, "The gateway"), "metric")} == families


def test_the_promises_name_tests_that_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"\[`(test_\w+)(\.py)?`\]\(\.\./(tests/[\w/]+\.py)\)", page)
    assert len(named) > 20
    for name, is_file, path in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert path.endswith(f"/{name}.py") if is_file else f"def {name}(" in text, (name, path)
