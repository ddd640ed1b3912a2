"""`POST /v1/completions`."""

from __future__ import annotations

import time
from typing import Any, cast

from fastapi import APIRouter
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.completion_choice import Logprobs
from starlette.requests import Request
from starlette.responses import Response

from chat_gateway.answers.chunks import CompletionChunks, CompletionReason, Head
from chat_gateway.answers.generation import Generation, Order, Prompt, check_size
from chat_gateway.answers.logprobs import CompletionLogprobs, prompt_logprobs
from chat_gateway.answers.replies import described, reply
from chat_gateway.answers.sse import EventStream
from chat_gateway.http.body import JsonRoute
from chat_gateway.http.dependencies import RequestIdDep, SettingsDep, UpstreamDep
from chat_gateway.http.disconnect import unless_gone
from chat_gateway.http.tracing import trace_headers
from chat_gateway.schemas.completions import CompletionRequest
from chat_gateway.schemas.inputs import each
from triton_chat.types import ChatResult

router = APIRouter(route_class=JsonRoute, tags=["generation"])


@router.post("/v1/completions", responses=described(Completion, streams=True))
async def create_completion(
    body: CompletionRequest, request: Request, upstream: UpstreamDep, settings: SettingsDep, request_id: RequestIdDep
) -> Response:
    """Continues prompts, without a chat template."""
    prompts = [_prompt(given) for given in each(body.prompt)]
    check_size(len(prompts), body.num_answers, settings.max_choices)
    found = await upstream.find(body.model)
    order = Order(
        model=found.model,
        adapter=found.adapter,
        prompts=prompts,
        n=body.num_answers,
        sampling=body.sampling(),
        echo=bool(body.echo),
        request_id=request_id,
        headers=trace_headers(),
        names=body.names,
    )
    generation = Generation(upstream, order)
    head = Head(id=f"cmpl-{request_id}", created=int(time.time()), model=body.model)
    if body.stream:
        chunks = CompletionChunks(
            head,
            include_usage=body.include_usage,
            usage_so_far=generation.usage if body.continuous_usage else None,
            logprobs=body.logprobs,
        )
        return EventStream(generation, chunks, settings)
    results = await unless_gone(request.receive, generation.results())
    return reply(_completion(body, head, results, generation.usage()))


def _prompt(given: str | list[int]) -> Prompt:
    return Prompt(text=given) if isinstance(given, str) else Prompt(token_ids=given)


def _completion(body: CompletionRequest, head: Head, results: list[ChatResult], usage: CompletionUsage) -> Completion:
    choices = [_choice(body, index, result) for index, result in enumerate(results)]
    return Completion(**head, object="text_completion", choices=choices, usage=usage)


def _choice(body: CompletionRequest, index: int, result: ChatResult) -> CompletionChoice:
    return CompletionChoice(
        index=index,
        text=result.text,
        logprobs=_logprobs(body, result),
        finish_reason=cast("CompletionReason", result.finish_reason),
        **_extras(body, result),
    )


def _logprobs(body: CompletionRequest, result: ChatResult) -> Logprobs | None:
    if body.logprobs is None:
        return None
    echoed = result.prompt_logprobs if body.echo else ()
    return CompletionLogprobs(body.logprobs).add(result.logprobs, echoed, result.text)


def _extras(body: CompletionRequest, result: ChatResult) -> dict[str, Any]:
    """vLLM's fields, where they were asked for."""
    extras: dict[str, Any] = {}
    if body.prompt_logprobs is not None:
        extras["prompt_logprobs"] = prompt_logprobs(result.prompt_logprobs, body.prompt_logprobs)
    if body.return_token_ids:
        extras |= {"prompt_token_ids": list(result.prompt_token_ids), "token_ids": list(result.token_ids)}
    return extras
