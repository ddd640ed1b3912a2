"""The loads, on a contender that answers at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from benchmarks.answers import Answer, RefusedError
from benchmarks.command import asked_loads, rates_of, typer, warm_up
from benchmarks.contenders import ALL, GATEWAY, INT8, LEVELS, chosen
from benchmarks.figures import Limits
from benchmarks.jobs import Job, make_arrivals, make_equal_jobs, make_jobs
from benchmarks.loads import Arrivals, Chats, Load, LongPrompt, Prefill, SharedPrompt, loads_of

LIMITS = Limits(1.0, 0.1)
ALL_LOADS = loads_of((1, 8, 32), (0.5, 2.0), LIMITS, quick=False)


def jobs_of(load: Load, number: int) -> list[Job]:
    if isinstance(load, Arrivals):
        return [job for _, job in load.jobs(number)]
    assert isinstance(load, Chats | SharedPrompt | Prefill | LongPrompt)
    return load.jobs(number)


def test_every_round_of_every_load_has_prompts_of_its_own() -> None:
    prompts = []
    for load in ALL_LOADS:
        for number in range(4):
            prompts += [tuple(job.prompt_ids[-32:]) for job in jobs_of(load, number)]
    assert len(set(prompts)) == len(prompts)
    systems = {tuple(SharedPrompt("shared", "").jobs(number)[0].prompt_ids[:1024]) for number in range(4)}
    assert len(systems) == 4


def test_the_same_seed_gives_the_same_work() -> None:
    assert make_jobs(5, "a") == make_jobs(5, "a") != make_jobs(5, "b")
    assert make_arrivals(2.0, 10.0, "a") == make_arrivals(2.0, 10.0, "a")
    quick = make_jobs(5, "a", part=0.25)
    assert [job.prompt_ids for job in quick] == [job.prompt_ids for job in make_jobs(5, "a")]
    assert all(8 <= job.max_tokens <= 32 for job in quick)


def test_the_lengths_of_the_work() -> None:
    jobs = make_jobs(200, 1)
    assert {len(job.prompt_ids) for job in jobs} <= set(range(32, 257))
    assert {job.max_tokens for job in jobs} <= set(range(32, 129))
    shared = make_equal_jobs(3, 100, 7, 1, shared=60)
    assert {(len(job.prompt_ids), job.max_tokens) for job in shared} == {(100, 7)}
    assert len({tuple(job.prompt_ids[:60]) for job in shared}) == 1
    assert len({tuple(job.prompt_ids[60:]) for job in shared}) == 3


def test_requests_arrive_at_their_rate() -> None:
    times = make_arrivals(5.0, 1000.0, 1)
    assert times == sorted(times)
    assert times[-1] <= 1000
    assert 4600 < len(times) < 5400
    assert len(make_arrivals(0.001, 1.0, 1)) == 1


async def at_once(job: Job, answer: Answer) -> None:
    await asyncio.sleep(0)
    answer.times += [time.monotonic()] * job.max_tokens
    answer.complete = True


@pytest.mark.parametrize(
    "load", [*ALL_LOADS[:6], Arrivals("a", "", rate=200, seconds=0.05)], ids=lambda load: load.name
)
async def test_every_load_gives_a_figure(load: Load) -> None:
    seen = await load.run(at_once, 1)
    assert seen.figure >= 0
    assert seen.answers
    assert all(answer.complete and answer.asked_at > 0 for answer in seen.answers)


async def test_the_one_who_brings_the_system_prompt_is_not_measured() -> None:
    assert len((await SharedPrompt("shared", "", callers=3).run(at_once, 1)).answers) == 3


async def test_no_more_callers_than_asked_for() -> None:
    now = most = 0

    async def ask(job: Job, answer: Answer) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        await at_once(job, answer)

    await Chats("chats", "", callers=2, chats=5).run(ask, 1)
    assert most == 2


async def test_who_is_not_done_in_time_is_given_up_and_who_is_refused_counts() -> None:
    async def ask(job: Job, answer: Answer) -> None:
        if len(job.prompt_ids) % 2:
            raise RefusedError
        await asyncio.sleep(60)

    load = Arrivals("a", "", rate=200, seconds=0.05, limits=Limits(0.05, 0.0))
    seen = await load.run(ask, 1)
    assert seen.figure == 0
    assert not any(answer.complete for answer in seen.answers)


def test_what_the_command_line_asks_for() -> None:
    assert [load.name for load in asked_loads(["shared", "latency"], ALL_LOADS)] == [
        "shared", "latency-0.5", "latency-2",
    ]  # fmt: skip
    assert asked_loads(None, ALL_LOADS) == ALL_LOADS
    with pytest.raises(typer.BadParameter, match="not 'speed'"):
        asked_loads(["speed"], ALL_LOADS)
    assert rates_of("4,0.5,4") == (0.5, 4.0)
    for text in ("", "0,1", "fast"):
        with pytest.raises(typer.BadParameter):
            rates_of(text)


def test_who_is_asked() -> None:
    assert [one.name for one in chosen(["native"])] == [*LEVELS, INT8]
    assert len(chosen(None)) == len(ALL) > len(chosen(None, quick=True))
    with pytest.raises(ValueError, match="there are: engine native, alone"):
        chosen(["tgi"])


def test_a_load_that_means_nothing_for_a_contender() -> None:
    by_name = {one.name: one for one in ALL}
    arrivals = ALL_LOADS[-1]
    assert by_name[GATEWAY].why_not(arrivals) is None
    assert by_name["transformers generate"].why_not(ALL_LOADS[5]) == "it takes no request while a batch runs"
    assert by_name["transformers continuous batching"].why_not(arrivals) == "latency is compared through HTTP alone"


def test_the_round_that_warms_up() -> None:
    assert warm_up(ALL_LOADS, quick=False) == ALL_LOADS[:6]
    assert warm_up(ALL_LOADS, quick=True) == ALL_LOADS[:3]
    assert warm_up(ALL_LOADS[6:], quick=False) == ALL_LOADS[6:7]
