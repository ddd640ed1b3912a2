"""vLLM behind the door, against the native engine: the same checkpoint in float32, the same answers."""

from __future__ import annotations

import math
import time

import pytest

from chat_engine.errors import InvalidArgumentError
from chat_engine.request import FinishReason
from chat_engine.serving import Serving
from tests.chat_engine.builders import WAIT, Inbox
from tests.vllm_engine.asking import ask, submit


def told(inbox: Inbox) -> dict[str, object]:
    """All that a caller can tell of an answer but for the numbers of log-probabilities and the prefix cache."""
    last = inbox.last
    return {
        "text": inbox.text,
        "reasoning": "".join(event.reasoning for event in inbox.events),
        "calls": "".join(delta.name + delta.arguments for event in inbox.events for delta in event.tool_calls),
        "reason": last.finish_reason,
        "error": last.error and (type(last.error), last.error.field),
        "counts": (last.num_input_tokens, last.num_output_tokens),
        "ids": [token for event in inbox.events for token in event.token_ids],
        "prompt_ids": [token for event in inbox.events for token in event.prompt_token_ids],
        "logprobs": [(e.chosen.token_id, [t.token_id for t in e.top]) for ev in inbox.events for e in ev.logprobs],
        "prompt": [(t.token_id, t.rank) for event in inbox.events for t in event.prompt_tokens],
    }


PROMPTS = ["Hello!", "What is the capital of France?", "你好，你是谁？", "Count to ten.", "🙂 é"]
GREEDY = {"temperature": 0, "max_tokens": 40}
CASES = [
    {},
    {"max_tokens": 1},
    {"ignore_eos": True, "max_tokens": 60},
    {"min_tokens": 30},
    {"stop": ["e"]},
    {"stop": ["o", "a"], "min_tokens": 8},
    {"stop_token_ids": [100, 101, 102, 103, 104]},
    {"logprobs": 3},
    {"logprobs": 0, "return_token_ids": True},
    {"prompt_logprobs": 2},
    {"prompt_logprobs": 0, "max_tokens": 0},
    {"logit_bias": {"300": -100, "301": 5}},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7, "frequency_penalty": 0.3},
    {"skip_special_tokens": False},
    {"temperature": 1, "top_p": 0},
    {"temperature": 1, "top_k": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_answers_are_those_of_the_native_engine(
    vllm_serving: Serving, native_serving: Serving, case: dict[str, object]
) -> None:
    parameters = {**GREEDY, **case}
    ours = [submit(vllm_serving, prompt, **parameters) for prompt in PROMPTS]  # side by side
    for prompt, inbox in zip(PROMPTS, ours, strict=True):
        assert inbox.ended.wait(WAIT)
        assert told(inbox) == told(ask(native_serving, prompt, **parameters)), prompt


def test_log_probabilities_are_those_of_the_native_engine(vllm_serving: Serving, native_serving: Serving) -> None:
    def numbers(serving: Serving) -> list[float]:
        inbox = ask(serving, "What is the capital of France?", **GREEDY, logprobs=4, prompt_logprobs=3)
        found = [t.logprob for event in inbox.events for e in event.logprobs for t in (e.chosen, *e.top)]
        scores = [t for event in inbox.events for p in event.prompt_tokens for t in (p, *p.top)]
        return found + [t.logprob for t in scores if t.logprob is not None]

    ours, theirs = numbers(vllm_serving), numbers(native_serving)
    assert len(ours) == len(theirs) > 100
    assert all(math.isclose(a, b, abs_tol=2e-3) for a, b in zip(ours, theirs, strict=True))


STRUCTURED = [
    {"json": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
    {"regex": "[a-f]{3,9}x"},
    {"choice": ["Paris", "London"]},
    {"grammar": 'start: "a" "b"+ "."'},
]


@pytest.mark.parametrize("outputs", STRUCTURED, ids=lambda outputs: next(iter(outputs)))
@pytest.mark.parametrize("stop", [[], ["b"]], ids=["", "stop"])
def test_constrained_answers_are_those_of_the_native_engine(
    vllm_serving: Serving, native_serving: Serving, outputs: dict[str, object], stop: list[str]
) -> None:
    parameters = {**GREEDY, "structured_outputs": outputs, "stop": stop}
    ours = ask(vllm_serving, "Say something.", **parameters)
    theirs = ask(native_serving, "Say something.", **parameters)
    assert (ours.text, ours.last.finish_reason) == (theirs.text, theirs.last.finish_reason)


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "weather"}}], ids=str)
@pytest.mark.parametrize("parallel", [True, False])
def test_calls_are_those_of_the_native_engine(
    vllm_serving: Serving, native_serving: Serving, choice: object, parallel: bool
) -> None:
    chat = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": parallel}
    parameters = {"temperature": 0, "max_tokens": 120}
    ours = told(ask(vllm_serving, "What is the weather in Paris?", chat, **parameters))
    theirs = told(ask(native_serving, "What is the weather in Paris?", chat, **parameters))
    assert choice == "auto" or ours["calls"]
    for name in ("text", "reasoning", "calls", "reason"):
        assert ours[name] == theirs[name], name


def test_seeds_repeat_in_any_batch_and_differ(vllm_serving: Serving) -> None:
    def answers(*seeds: int) -> list[str]:
        inboxes = [submit(vllm_serving, "xq zw", temperature=2, max_tokens=30, seed=s) for s in seeds]
        assert all(inbox.ended.wait(WAIT) for inbox in inboxes)
        return [inbox.text for inbox in inboxes]

    alone, together = answers(7), answers(2**64 - 1, 7, 0, 7)
    assert together[1] == together[3] == alone[0]
    assert len(set(together)) == 3


@pytest.mark.parametrize(
    ("field", "parameters"),
    [
        ("temperature", {"temperature": 0.001}),
        ("ignore_eos", {"ignore_eos": True, "structured_outputs": {"regex": "a+"}}),
        ("min_tokens", {"min_tokens": 3, "structured_outputs": {"regex": "a+"}}),
        ("stop_token_ids", {"stop_token_ids": [9], "structured_outputs": {"regex": "a+"}}),
        ("structured_outputs.grammar", {"structured_outputs": {"grammar": "start: ("}}),
    ],
)
def test_what_vllm_does_otherwise_is_refused_by_name(
    vllm_serving: Serving, field: str, parameters: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        submit(vllm_serving, "Hello!", **parameters)
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["What is the weather in Paris?", "Hello!"])
def test_a_constrained_answer_or_a_call(vllm_serving: Serving, native_serving: Serving, text: str) -> None:
    parameters = {"temperature": 0, "max_tokens": 80, "structured_outputs": STRUCTURED[0]}
    chat = {"tools": [TOOL]}
    ours = told(ask(vllm_serving, text, chat, **parameters))
    assert ours == {**told(ask(native_serving, text, chat, **parameters)), "counts": ours["counts"]}
    assert ours["error"] is None


def test_a_strict_function_is_for_calls_that_are_required(vllm_serving: Serving) -> None:
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    with pytest.raises(InvalidArgumentError) as caught:
        submit(vllm_serving, "Hello!", {"tools": [strict]}, max_tokens=5)
    assert caught.value.field == "tools"
    required = {"tools": [strict], "tool_choice": "required"}
    assert told(ask(vllm_serving, "Hello!", required, max_tokens=120))["calls"]


def test_a_cancelled_request_ends_at_once_and_the_others_go_on(vllm_serving: Serving) -> None:
    long = {"temperature": 0, "ignore_eos": True, "max_tokens": 1500}
    first = submit(vllm_serving, "Hello!", **long)
    other = submit(vllm_serving, "Count to ten.", **{**long, "max_tokens": 200})
    deadline = time.monotonic() + WAIT
    while not first.events and time.monotonic() < deadline:
        time.sleep(0.01)
    begin = time.monotonic()
    vllm_serving.engine.cancel(first.request_id)
    assert first.ended.wait(1.0)
    assert time.monotonic() - begin < 1.0
    assert first.last.finish_reason is FinishReason.CANCELLED
    assert 0 < first.output < 1500
    assert other.ended.wait(60)
    assert (other.last.finish_reason, other.output) == (FinishReason.LENGTH, 200)


def test_a_request_cancelled_before_it_begins_ends_too(vllm_serving: Serving) -> None:
    inbox = submit(vllm_serving, "Hello!", temperature=0, ignore_eos=True, max_tokens=1000)
    vllm_serving.engine.cancel(inbox.request_id)
    assert inbox.ended.wait(WAIT)
    assert inbox.last.finish_reason is FinishReason.CANCELLED


def test_numbers(vllm_serving: Serving) -> None:
    engine = vllm_serving.engine
    before = engine.stats()
    prompt = "The same beginning. " * 60
    inboxes = [ask(vllm_serving, prompt, temperature=0, ignore_eos=True, max_tokens=20) for _ in range(2)]
    after = engine.stats()
    assert after.generation_tokens - before.generation_tokens == 40
    assert after.steps - before.steps >= 40
    assert after.prompt_tokens - before.prompt_tokens == 2 * inboxes[0].last.num_input_tokens
    assert after.prefix_cache_hit_tokens - before.prefix_cache_hit_tokens == inboxes[1].last.num_cached_tokens > 100
    assert after.finished[FinishReason.LENGTH] - before.finished[FinishReason.LENGTH] == 2
    assert (after.running, after.waiting, after.kv_cache_usage) == (0, 0, 0.0)
    assert abs(after.last_step - time.time()) < WAIT
    times = after.times[-1]
    assert times.queue is not None
    assert times.first_token is not None
    assert times.per_output_token is not None
    assert 0 <= times.queue <= times.first_token <= times.total < WAIT


def test_it_is_ready_and_has_not_failed(vllm_serving: Serving, failures: list[int]) -> None:
    assert vllm_serving.engine.is_ready()
    assert vllm_serving.engine.complaint() is None
    assert failures == []
