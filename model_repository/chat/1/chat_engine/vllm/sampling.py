"""A request as vLLM's sampling parameters.

Text is made here, from token ids: vLLM gets no stop strings, and the tokens that end answers as plain stop tokens. What
it cannot do for a request is refused by name.
"""

from __future__ import annotations

import json
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from chat_engine.answering.guide import Guide
from chat_engine.errors import InvalidArgumentError
from chat_engine.request import ChatRequest, Constraint

_LEAST_TEMPERATURE = 0.01  # vLLM computes with this instead of less
_SEEDS = 2**63 - 1


def check(request: ChatRequest, *, greedy_alone: bool = False) -> None:
    """Raises InvalidArgumentError for what vLLM would do otherwise than asked for.

    Args:
        request: of a caller.
        greedy_alone: vLLM cannot draw here.
    """
    sampling = request.sampling
    if greedy_alone and not sampling.greedy:
        raise InvalidArgumentError(
            f"{sampling.temperature} is not possible with speculative decoding on CPUs, where vLLM has no kernels for "
            "it; use 0",
            field="temperature",
        )
    if not sampling.greedy and sampling.temperature < _LEAST_TEMPERATURE:
        raise InvalidArgumentError(
            f"{sampling.temperature} is not possible with the engine vllm; use 0, or {_LEAST_TEMPERATURE} and more",
            field="temperature",
        )
    if request.reply and request.reply.strict and request.reply.opened and not request.constraint:
        raise InvalidArgumentError(
            "a function that is strict is not possible with the engine vllm where the model may choose to call; "
            "use the tool_choice required, or leave strict out",
            field="tools",
        )
    if request.constraint:  # nothing tells vLLM's end of a grammar from another
        for name, given in (
            ("ignore_eos", sampling.ignore_eos),
            ("min_tokens", sampling.min_tokens),
            ("stop_token_ids", list(sampling.stop_token_ids)),
        ):
            if given:
                raise InvalidArgumentError(
                    f"{json.dumps(given)} cannot be combined with {request.constraint.field} with the engine vllm",
                    field=name,
                )


def sampling_params(request: ChatRequest, guide: Guide) -> SamplingParams:
    """What vLLM is to do for a request that has passed `check`."""
    sampling, constraint = request.sampling, request.constraint
    return SamplingParams(
        **_choice(request),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        max_tokens=max(1, request.max_tokens),  # of an answer without tokens, the one that vLLM makes is not taken
        min_tokens=sampling.min_tokens if guide.stop_ids else 0,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        # A constrained answer ends by the end token of the grammar's tokenizer.
        ignore_eos=constraint is None,
        stop_token_ids=[] if constraint else sorted(guide.stop_ids),
        structured_outputs=StructuredOutputsParams(grammar=as_lark(constraint)) if constraint else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _choice(request: ChatRequest) -> dict[str, Any]:
    sampling = request.sampling
    if sampling.greedy:
        return {"temperature": 0.0}
    # vLLM draws for a request with a seed by itself, which costs it time; nobody misses a seed that he has not given.
    seed = None if sampling.seed is None else request.seed % _SEEDS
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": max(0, sampling.top_k),
        "min_p": sampling.min_p,
        "seed": seed,
    }


def as_lark(constraint: Constraint) -> str:
    """A constraint as the one Lark grammar that vLLM takes. Of several, the others are in rules of their own."""
    first, *others = json.loads(constraint.grammar)["grammars"]
    if "json_schema" in first:
        return f"start: {_inner(first)}\n"
    text: str = first["lark_grammar"]
    for other in others:
        rule = f"of_{other['name']}"
        text = text.replace(f"@{other['name']}", rule, 1) + f"\n{rule}: {_inner(other)}\n"
    return text


def _inner(grammar: dict[str, Any]) -> str:
    if "json_schema" in grammar:
        return f"%json {json.dumps(grammar['json_schema'])}"
    return f"%lark {{\n{grammar['lark_grammar']}\n}}"
