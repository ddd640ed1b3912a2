"""The metric families, and how a known workload moves them."""

from __future__ import annotations

import time

import pytest

from local.triton import LocalTriton
from tests.integration.calls import LONG, Metrics, Stream, ask, chat, connect, eventually, infer, request, settled
from tests.integration.engines import VLLM

HISTOGRAMS = {
    "gen_ai_server_time_to_first_token_seconds",
    "gen_ai_server_time_per_output_token_seconds",
    "gen_ai_server_request_duration_seconds",
    "triton_chat_queue_seconds",
}
COUNTERS = {
    "triton_chat_prompt_tokens",
    "triton_chat_generation_tokens",
    "triton_chat_prefix_cache_hit_tokens",
    "triton_chat_preemptions",
    "triton_chat_drafted_tokens",
    "triton_chat_accepted_tokens",
    "triton_chat_engine_steps",
    "triton_chat_requests",
}
GAUGES = {
    "triton_chat_requests_running",
    "triton_chat_requests_waiting",
    "triton_chat_kv_cache_usage_ratio",
    "triton_chat_engine_last_step_timestamp_seconds",
    "triton_chat_engine_heartbeat_timestamp_seconds",
}


def test_every_family_is_there_with_its_type_and_the_label_model(triton: LocalTriton) -> None:
    metrics = Metrics(triton)
    ours = {name: kind for name, kind in metrics.types.items() if is_of_chat(name)}
    assert ours == (
        dict.fromkeys(HISTOGRAMS, "histogram") | dict.fromkeys(COUNTERS, "counter") | dict.fromkeys(GAUGES, "gauge")
    )
    samples = [sample for sample in metrics.samples if is_of_chat(sample.name)]
    assert {sample.labels["model"] for sample in samples} == {"chat"}
    reasons = {s.labels.get("finish_reason") for s in samples if s.name == "triton_chat_requests_total"}
    assert reasons == {"stop", "length", "tool_calls", "cancelled", "error"}


def is_of_chat(name: str) -> bool:
    return name.startswith(("triton_chat_", "gen_ai_")) and not name.startswith("triton_chat_embeddings_")


def test_a_known_workload_is_counted_exactly(triton: LocalTriton, engine_name: str) -> None:
    before = settled(triton)
    prompt = f"A prompt of several blocks that no other test has sent, at {time.time_ns()}: " + "one two three " * 8
    length = {"max_tokens": 7, "ignore_eos": True, "temperature": 0}
    with connect(triton) as stub:
        answers = [ask(stub, request(text_input=prompt, sampling_parameters=length)).last for _ in range(3)]
        answers += [ask(stub, request(messages=chat("Who are you?"))).last]
        answers += infer(stub, request("chat_unary", messages=chat("你是谁？"))).answers
        assert ask(stub, request(text_input="refused", sampling_parameters={"max_tokens": 0})).error
    after = settled(triton)
    grown = after - before

    assert [answer.finish_reason for answer in answers] == ["length"] * 3 + ["stop"] * 2
    assert answers[1].num_cached_tokens == answers[2].num_cached_tokens > 0
    assert {
        reason: grown("triton_chat_requests_total", finish_reason=reason)
        for reason in ("stop", "length", "cancelled", "error")
    } == {"stop": 2, "length": 3, "cancelled": 0, "error": 0}
    assert grown("triton_chat_prompt_tokens_total") == sum(answer.num_input_tokens for answer in answers)
    assert grown("triton_chat_generation_tokens_total") == sum(answer.num_output_tokens for answer in answers)
    assert grown("triton_chat_prefix_cache_hit_tokens_total") == sum(answer.num_cached_tokens for answer in answers)
    assert grown("triton_chat_preemptions_total") == 0
    one_by_one = sum(answer.num_output_tokens for answer in answers)
    # vLLM has begun the step behind an answer's last one before it knows that it is the last.
    assert one_by_one <= grown("triton_chat_engine_steps_total") <= one_by_one + (engine_name == VLLM) * len(answers)
    for family in HISTOGRAMS:
        assert grown(family + "_count") == 5, family
        assert 0 < grown(family + "_sum") < 60 or family == "triton_chat_queue_seconds"
        assert grown(family + "_bucket", le="+Inf") == 5
    assert grown("gen_ai_server_time_to_first_token_seconds_sum") < grown("gen_ai_server_request_duration_seconds_sum")


def test_the_gauges_show_what_runs(triton: LocalTriton) -> None:
    before = settled(triton)
    assert before("triton_chat_requests_running") == 0
    with connect(triton) as stub:
        streams = [Stream(stub, request(text_input="Once", sampling_parameters=LONG)).started() for _ in range(3)]
        eventually(lambda: Metrics(triton)("triton_chat_requests_running") == 3, within=5)
        running = Metrics(triton)
        assert 0 < running("triton_chat_kv_cache_usage_ratio") < 1
        assert running("triton_chat_engine_last_step_timestamp_seconds") == pytest.approx(time.time(), abs=5)
        assert running("triton_chat_generation_tokens_total") > before("triton_chat_generation_tokens_total")
        for stream in streams:
            stream.cancel()
        eventually(lambda: Metrics(triton)("triton_chat_requests_running") == 0, within=5)
    assert (settled(triton) - before)("triton_chat_requests_total", finish_reason="cancelled") == 3
