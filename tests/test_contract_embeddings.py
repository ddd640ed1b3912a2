"""The places that state the wire contract of `embeddings` agree. No server is needed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from embedder import parse
from embedder.config import load_config
from embedder.parse import WireRequest
from local.options import DEFAULT_MODEL, ROOT
from triton_chat import embeddings, wire
from triton_chat.kinds import kind_of

MODEL = ROOT / "model_repository" / "embeddings"
DATATYPES = {"TYPE_STRING": "BYTES", "TYPE_INT32": "INT32", "TYPE_FP32": "FP32"}


def config(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def tensors(found: list) -> tuple[wire.TensorSpec, ...]:
    kinds = model_config_pb2.DataType.Name
    return tuple(wire.TensorSpec(t.name, DATATYPES[kinds(t.data_type)], getattr(t, "optional", False)) for t in found)


def test_config_and_client_agree() -> None:
    parsed = config(MODEL / "config.pbtxt")
    assert (parsed.name, parsed.backend, parsed.max_batch_size) == ("embeddings", "python", embeddings.MAX_ROWS)
    assert tensors(parsed.input) == embeddings.INPUTS
    assert tensors(parsed.output) == embeddings.OUTPUTS
    assert [tuple(tensor.dims) for tensor in [*parsed.input, *parsed.output]] == [(1,), (1,), (1,), (-1,), (1,)]
    assert kind_of(parsed) == "embeddings"


def test_the_model_knows_every_input() -> None:
    assert [field.name for field in fields(WireRequest)] == [spec.name for spec in embeddings.INPUTS] + ["parameters"]


def test_the_model_knows_every_parameter() -> None:
    assert parse.PARAMETERS == embeddings.PARAMETERS
    assert {*parse.PARAMETERS, "dimensions"} == set(embeddings.EmbedOptions.__annotations__)


def test_triton_forms_batches_of_preferred_sizes_and_is_never_late() -> None:
    parsed = config(MODEL / "config.pbtxt")
    assert not parsed.model_transaction_policy.decoupled
    assert list(parsed.dynamic_batching.preferred_batch_size) == [16, 32, 64]
    # A priority, time or length limit would cost some requests half a second: see docs/decisions.
    assert not parsed.dynamic_batching.priority_levels
    assert not parsed.dynamic_batching.HasField("default_queue_policy")


def test_the_configs_for_gpu_and_cpu_differ_in_one_line() -> None:
    gpu = (MODEL / "config.pbtxt").read_text()
    assert gpu.count("KIND_GPU") == 1
    assert gpu.replace("KIND_GPU gpus: [ 0 ]", "KIND_CPU") == (MODEL / "configs" / "cpu.pbtxt").read_text()


def test_the_default_model_is_the_one_that_is_here() -> None:
    assert Path(load_config(MODEL / "1", {}, {}).model) == DEFAULT_MODEL
