"""The places that state the wire contract, and the names of parameters and metrics, agree. No server is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import vllm_contract
from chat_engine import tokenizer
from chat_engine.reading import request_parser as parse
from chat_engine.reading.chat_parameters import TEMPLATE_OPTIONS, ChatParameters
from chat_engine.request import SamplingParams
from chat_engine.service import metrics
from local.options import ROOT
from triton_chat import tokenizer as tokenizer_wire
from triton_chat import types, wire
from triton_chat.kinds import kind_of
from triton_chat_server.probe import checks

REPOSITORY = ROOT / "model_repository"
TENSORS = {
    "chat": (wire.INPUTS, wire.OUTPUTS),
    "chat_unary": (wire.INPUTS, wire.OUTPUTS),
    "tokenizer": (tokenizer_wire.INPUTS, tokenizer_wire.OUTPUTS),
}
DATATYPES = {"TYPE_STRING": "BYTES", "TYPE_BOOL": "BOOL", "TYPE_INT32": "INT32"}

FAMILIES = {
    "gen_ai_server_time_to_first_token_seconds": "histogram",
    "gen_ai_server_time_per_output_token_seconds": "histogram",
    "gen_ai_server_request_duration_seconds": "histogram",
    "triton_chat_queue_seconds": "histogram",
    "triton_chat_prompt_tokens_total": "counter",
    "triton_chat_generation_tokens_total": "counter",
    "triton_chat_prefix_cache_hit_tokens_total": "counter",
    "triton_chat_preemptions_total": "counter",
    "triton_chat_drafted_tokens_total": "counter",
    "triton_chat_accepted_tokens_total": "counter",
    "triton_chat_engine_steps_total": "counter",
    "triton_chat_requests_total": "counter",
    "triton_chat_requests_running": "gauge",
    "triton_chat_requests_waiting": "gauge",
    "triton_chat_kv_cache_usage_ratio": "gauge",
    "triton_chat_engine_last_step_timestamp_seconds": "gauge",
    "triton_chat_engine_heartbeat_timestamp_seconds": "gauge",
}


def config(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def tensors(found: list) -> list[wire.TensorSpec]:
    kinds = model_config_pb2.DataType.Name
    return [wire.TensorSpec(t.name, DATATYPES[kinds(t.data_type)], getattr(t, "optional", False)) for t in found]


@pytest.mark.parametrize("model", TENSORS)
def test_config_and_client_agree_on_the_tensors(model: str) -> None:
    parsed = config(REPOSITORY / model / "config.pbtxt")
    assert parsed.name == model
    assert parsed.backend == "python"
    assert (tensors(parsed.input), tensors(parsed.output)) == tuple(map(list, TENSORS[model]))
    assert {tuple(tensor.dims) for tensor in [*parsed.input, *parsed.output]} == {(1,)}


def test_only_chat_streams() -> None:
    policies = {model: config(REPOSITORY / model / "config.pbtxt").model_transaction_policy for model in TENSORS}
    assert [model for model, policy in policies.items() if policy.decoupled] == ["chat"]


def test_the_model_knows_every_input() -> None:
    known = {field.name for field in fields(parse.WireRequest)} - {"id", "parameters"}
    assert known == {spec.name for spec in wire.INPUTS}
    assert tuple(spec.name for spec in wire.INPUTS[:3]) == parse.PROMPTS
    assert set(ChatParameters.model_fields) == set(types.CHAT_PARAMETERS)
    assert set(TEMPLATE_OPTIONS) < set(types.CHAT_PARAMETERS)
    assert set(parse.SWITCHES) == {spec.name for spec in wire.INPUTS if spec.datatype == "BOOL"}


@pytest.mark.parametrize("source", ["chat/1/triton_channel.py", "chat_unary/1/model.py"])
def test_the_models_name_every_output_in_order(source: str) -> None:
    names = [spec.name for spec in wire.OUTPUTS]
    nodes = ast.walk(ast.parse((REPOSITORY / source).read_text()))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    assert [text for text in texts if text in names] == names


def test_the_tokenizer_knows_every_input_option_and_output() -> None:
    known = [field.name for field in fields(tokenizer.TokenizerRequest)]
    assert known == [*(spec.name for spec in tokenizer_wire.INPUTS), "parameters"]
    assert known == ["model", *parse.PROMPTS[:2], "token_ids", "chat_parameters", "parameters"]
    assert tokenizer.OPTIONS == tokenizer_wire.PARAMETERS
    source = ast.walk(ast.parse((REPOSITORY / "tokenizer" / "1" / "model.py").read_text()))
    texts = {node.value for node in source if isinstance(node, ast.Constant)}
    assert {spec.name for spec in tokenizer_wire.OUTPUTS} <= texts


def test_the_tokenizer_takes_no_batches_and_no_gpu() -> None:
    parsed = config(REPOSITORY / "tokenizer" / "config.pbtxt")
    assert parsed.max_batch_size == 0
    assert [model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) for group in parsed.instance_group] == [
        "KIND_CPU"
    ]


@pytest.mark.parametrize("model", [*TENSORS, "embeddings"])
def test_a_model_is_known_by_its_tensors(model: str) -> None:
    assert kind_of(config(REPOSITORY / model / "config.pbtxt")) == model


@pytest.mark.parametrize("model", ["chat", "chat_unary"])
def test_a_model_of_an_older_server_is_known_without_newer_outputs(model: str) -> None:
    """Both run side by side during an update."""
    older = config(REPOSITORY / model / "config.pbtxt")
    kept = [
        output for output in older.output if output.name not in {"prompt_logprobs", "token_ids", "prompt_token_ids"}
    ]
    del older.output[:]
    older.output.extend(kept)
    assert kind_of(older) == model


@pytest.mark.parametrize("model", ["chat_unary", "vllm_model"])
def test_what_forwards_forwards_to_chat(model: str) -> None:
    parsed = config(REPOSITORY / model / "config.pbtxt")
    assert parsed.name == model
    assert parsed.parameters["chat_model"].string_value == "chat"


@pytest.mark.parametrize("model", ["chat_unary", "vllm_model"])
def test_what_forwards_is_light(model: str, tmp_path: Path) -> None:
    """Its process needs no GPU and loads nothing of the engine that takes time or memory."""
    (tmp_path / "triton_python_backend_utils.py").touch()
    folder = REPOSITORY / model / "1"
    script = f"""
import runpy, sys
sys.path += [{str(tmp_path)!r}, {str(folder)!r}]
runpy.run_path({str(folder / "model.py")!r})
heavy = {{"torch", "transformers", "tokenizers", "pydantic"}}
print(sorted(heavy & sys.modules.keys()), "triton_io.forward" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[] True\n", "")


def test_vllm_model_has_the_tensors_of_the_vllm_backend() -> None:
    parsed = config(REPOSITORY / "vllm_model" / "config.pbtxt")
    kinds = model_config_pb2.DataType.Name
    inputs = {tensor.name: (kinds(tensor.data_type), *tensor.dims, tensor.optional) for tensor in parsed.input}
    outputs = {tensor.name: (kinds(tensor.data_type), *tensor.dims) for tensor in parsed.output}
    switches = ("stream", "exclude_input_in_output", *vllm_contract.RETURNS)
    assert inputs == {
        "text_input": ("TYPE_STRING", 1, False),
        "image": ("TYPE_STRING", -1, True),
        "sampling_parameters": ("TYPE_STRING", 1, True),
        **dict.fromkeys(switches, ("TYPE_BOOL", 1, True)),
    }
    assert outputs == {
        "text_output": ("TYPE_STRING", -1),
        "finish_reason": ("TYPE_STRING", -1),
        "cumulative_logprob": ("TYPE_FP32", -1),
        "logprobs": ("TYPE_STRING", -1),
        "num_input_tokens": ("TYPE_UINT32", 1),
        "num_output_tokens": ("TYPE_UINT32", -1),
    }
    assert parsed.max_batch_size == 0
    assert parsed.model_transaction_policy.decoupled


def test_vllm_model_is_no_chat_model_of_the_gateway() -> None:
    """The gateway and the client speak to `chat` itself."""
    assert kind_of(config(REPOSITORY / "vllm_model" / "config.pbtxt")) == "other"


def test_vllm_model_asks_for_outputs_and_inputs_of_chat() -> None:
    assert set(vllm_contract.CHAT_OUTPUTS) <= {spec.name for spec in wire.OUTPUTS}
    asked = vllm_contract.read({"text_input": np.array([b"Once"], np.object_)}, {})
    assert set(asked.inputs) <= {spec.name for spec in wire.INPUTS}


def test_the_configs_for_gpu_and_cpu_differ_in_one_line() -> None:
    gpu = (REPOSITORY / "chat" / "config.pbtxt").read_text()
    cpu = (REPOSITORY / "chat" / "configs" / "cpu.pbtxt").read_text()
    assert gpu.count("KIND_GPU") == 1
    assert gpu.replace("KIND_GPU gpus: [ 0 ]", "KIND_CPU") == cpu


def test_client_and_engine_know_the_same_sampling_parameters() -> None:
    engine = tuple(SamplingParams.model_fields)
    assert engine == wire.SAMPLING_PARAMETERS
    assert set(engine) == set(types.SamplingOptions.__annotations__)


def test_the_metric_families_are_those_that_are_documented() -> None:
    assert {family.name: family.kind for family in metrics.FAMILIES} == FAMILIES
    assert all(bool(family.buckets) == (family.kind == "histogram") for family in metrics.FAMILIES)


def test_the_probe_looks_at_metrics_that_there_are() -> None:
    ours = {metrics.HEARTBEAT.name, metrics.RUNNING.name, metrics.LAST_STEP.name}
    assert {checks.HEARTBEAT, checks.RUNNING, checks.LAST_STEP} == ours
