"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from starlette.requests import Request
from starlette.responses import Response

from chat_gateway.answers.chunks import ChatChunks, Head, finish_reason
from chat_gateway.answers.generation import Generation, Order, Prompt, check_size
from chat_gateway.answers.logprobs import chat_logprobs, prompt_logprobs
from chat_gateway.answers.replies import described, reply
from chat_gateway.answers.sse import EventStream
from chat_gateway.http.body import JsonRoute
from chat_gateway.http.dependencies import RequestIdDep, SettingsDep, UpstreamDep
from chat_gateway.http.disconnect import unless_gone
from chat_gateway.http.tracing import trace_headers
from chat_gateway.schemas.chat import ChatCompletionRequest
from triton_chat.types import ChatResult

router = APIRouter(route_class=JsonRoute, tags=["generation"])


@router.post("/v1/chat/completions", responses=described(ChatCompletion, streams=True))
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    upstream: UpstreamDep,
    settings: SettingsDep,
    request_id: RequestIdDep,
) -> Response:
    """Answers a conversation."""
    check_size(1, body.num_answers, settings.max_choices)
    order = Order(
        model=await upstream.resolve(body.model),
        prompts=[Prompt(messages=body.to_model())],
        n=body.num_answers,
        sampling=body.sampling(),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        request_id=request_id,
        headers=trace_headers(),
        names=body.names,
    )
    generation = Generation(upstream.client, order)
    head = Head(id=f"chatcmpl-{request_id}", created=int(time.time()), model=body.model)
    if body.stream:
        usage_so_far = generation.usage if body.continuous_usage else None
        chunks = ChatChunks(head, include_usage=body.include_usage, usage_so_far=usage_so_far)
        return EventStream(generation, chunks, settings)
    results = await unless_gone(request.receive, generation.results())
    return reply(_completion(body, head, results, generation.usage()))


def _completion(
    body: ChatCompletionRequest, head: Head, results: list[ChatResult], usage: CompletionUsage
) -> ChatCompletion:
    choices = [_choice(body, index, result) for index, result in enumerate(results)]
    extras = _extras(body, results[0])
    return ChatCompletion(**head, object="chat.completion", choices=choices, usage=usage, **extras)


def _extras(body: ChatCompletionRequest, result: ChatResult) -> dict[str, Any]:
    """vLLM's fields about the prompt, where they were asked for."""
    extras: dict[str, Any] = {}
    if body.prompt_logprobs is not None:
        extras["prompt_logprobs"] = prompt_logprobs(result.prompt_logprobs, body.prompt_logprobs)
    if body.return_token_ids:
        extras["prompt_token_ids"] = list(result.prompt_token_ids)
    return extras


def _choice(body: ChatCompletionRequest, index: int, result: ChatResult) -> Choice:
    extras = {"token_ids": list(result.token_ids)} if body.return_token_ids else {}
    return Choice(
        index=index,
        message=ChatCompletionMessage(role="assistant", content=result.text, refusal=None),
        logprobs=ChoiceLogprobs(content=chat_logprobs(result.logprobs), refusal=None) if result.logprobs else None,
        finish_reason=finish_reason(result.finish_reason),
        **extras,
    )
