"""Many streams, and a KV cache that is too small for them. The last test ends the engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chat_engine.errors import DrainingError
from chat_engine.request import FinishReason
from chat_engine.serving import Serving
from tests.vllm_engine.asking import Answer, submit
from tests.vllm_engine.conftest import vllm_settings
from tests.vllm_engine.started import LIMIT, LONG, Started

STREAMS = 200
WAIT = 120.0


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    small = {"block_size": 32, "kv_cache_tokens": 2112}  # a context and a little
    started = Started(vllm_settings(max_sequences=64, queue_room=STREAMS, drain_seconds=1.0, **small))
    yield started
    started.serving.engine.close()


def ended(answers: list[Answer]) -> list[tuple[str, FinishReason | None]]:
    assert all(answer.ended.wait(WAIT) for answer in answers)
    return [(answer.text, answer.last.finish_reason) for answer in answers]


def test_more_than_the_cache_holds_is_put_back_and_answered(started: Started, native_serving: Serving) -> None:
    long = {"temperature": 0, "ignore_eos": True, "max_tokens": 400}
    before = started.serving.engine.stats()
    ours = ended([submit(started.serving, f"Say {i}.", **long) for i in range(8)])
    stats = started.serving.engine.stats()
    assert stats.preemptions > before.preemptions
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (0, 0, 0.0)
    assert ours == ended([submit(native_serving, f"Say {i}.", **long) for i in range(8)])


def test_two_hundred_streams_answer_as_if_each_were_alone(started: Started, native_serving: Serving) -> None:
    short = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    prompts = [f"{word} {i}" for i in range(STREAMS // 4) for word in ("Hello", "Count to", "What is", "Say")]
    before = started.serving.engine.stats()
    answers = [submit(started.serving, prompt, **short) for prompt in prompts]
    ours = ended(answers)
    assert [answer.output for answer in answers] == [12] * STREAMS
    assert ours == ended([submit(native_serving, prompt, **short) for prompt in prompts[:64]]) + ours[64:]
    after = started.serving.engine.stats()
    assert after.finished[FinishReason.LENGTH] - before.finished[FinishReason.LENGTH] == STREAMS
    assert after.generation_tokens - before.generation_tokens == 12 * STREAMS
    assert (after.running, after.waiting, after.kv_cache_usage) == (0, 0, 0.0)


def test_the_gauges_fall_with_those_that_are_cancelled(started: Started) -> None:
    answers = started.running(3)
    assert started.serving.engine.stats().running == 3
    for answer in answers:
        started.serving.engine.cancel(answer.request_id)
    assert all(reason is FinishReason.CANCELLED for _, reason in ended(answers))
    stats = started.serving.engine.stats()
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (0, 0, 0.0)


def test_a_server_that_stops_lets_answers_end_and_ends_the_rest(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    engine = started.serving.engine
    short = submit(started.serving, "Hello!", temperature=0, ignore_eos=True, max_tokens=20)
    long = submit(started.serving, "Hello!", **LONG)
    assert not engine.drain(0.0)
    with pytest.raises(DrainingError):
        submit(started.serving, "Hello!")
    assert short.ended.wait(LIMIT)
    assert not engine.drain(0.1)
    engine.close()
    engine.close()  # as the model does, when its server stops
    assert short.last.finish_reason is FinishReason.LENGTH
    assert long.last.finish_reason is FinishReason.ERROR
    assert isinstance(long.last.error, DrainingError)
    assert not started.failed.is_set()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
    started.leaves_nothing()
