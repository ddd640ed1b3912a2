"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from openai.types.chat.chat_completion import ChoiceLogprobs
from starlette.requests import Request
from starlette.responses import Response

from chat_gateway.answers.chunks import ChatChunks, Head
from chat_gateway.answers.generation import Generation, Order, Prompt, check_size
from chat_gateway.answers.logprobs import chat_logprobs, prompt_logprobs
from chat_gateway.answers.messages import Answer, AnswerChoice, Style
from chat_gateway.answers.replies import described, reply
from chat_gateway.answers.sse import EventStream
from chat_gateway.errors import ApiError
from chat_gateway.http.body import JsonRoute
from chat_gateway.http.dependencies import RequestIdDep, SettingsDep, UpstreamDep
from chat_gateway.http.disconnect import unless_gone
from chat_gateway.http.tracing import trace_headers
from chat_gateway.schemas.chat import ChatCompletionRequest
from chat_gateway.schemas.effort import NO_EFFORT, Effort, effort_kwargs
from chat_gateway.upstream.triton import Upstream
from triton_chat.errors import EngineError, InvalidRequestError, ModelNotFoundError
from triton_chat.types import ChatResult

router = APIRouter(route_class=JsonRoute, tags=["generation"])


@router.post("/v1/chat/completions", responses=described(Answer, streams=True))
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    upstream: UpstreamDep,
    settings: SettingsDep,
    request_id: RequestIdDep,
) -> Response:
    """Answers a conversation."""
    check_size(1, body.num_answers, settings.max_choices)
    found = await upstream.find(body.model)
    effort = {}
    if body.reasoning_effort is not None:
        effort = await unless_gone(request.receive, _effort(body.reasoning_effort, upstream, found.model))
    order = Order(
        model=found.model,
        adapter=found.adapter,
        prompts=[Prompt(messages=body.to_model())],
        n=body.num_answers,
        sampling=body.sampling(),
        chat=body.options(effort),
        request_id=request_id,
        headers=trace_headers(),
        names=body.names,
    )
    generation = Generation(upstream, order)
    head = Head(id=f"chatcmpl-{request_id}", created=int(time.time()), model=body.model)
    style = Style(reasoning=body.include_reasoning is not False, function_call=body.calls_functions)
    if body.stream:
        usage_so_far = generation.usage if body.continuous_usage else None
        chunks = ChatChunks(head, include_usage=body.include_usage, usage_so_far=usage_so_far, style=style)
        return EventStream(generation, chunks, settings)
    results = await unless_gone(request.receive, generation.results())
    choices = [_choice(body, style, index, result) for index, result in enumerate(results)]
    extras = _extras(body, results[0])
    return reply(Answer(**head, object="chat.completion", choices=choices, usage=generation.usage(), **extras))


async def _effort(effort: Effort, upstream: Upstream, model: str) -> dict[str, object]:
    """`reasoning_effort` as `chat_template_kwargs`.

    Raises:
        ApiError: 400 the chat template of the model cannot take it, or nobody can say whether it can.
        TritonChatError: the tokenizer does not answer now.
    """
    try:
        details = await upstream.needed_details(model)
    except (ModelNotFoundError, InvalidRequestError, EngineError) as error:  # trying again would not help
        if effort == NO_EFFORT:
            return {}
        raise _no_effort(
            "what the chat template of this model takes cannot be found out, because the tokenizer model is missing or "
            "fails; leave it out, send none, or send chat_template_kwargs instead"
        ) from error
    template = details.config.get("chat_template")
    kwargs = effort_kwargs(effort, details.template_kwargs, template if isinstance(template, str) else None)
    if kwargs is None and effort == NO_EFFORT:
        raise _no_effort("the chat template of this model cannot turn reasoning off; leave it out or send low")
    if kwargs is None:
        raise _no_effort("the chat template of this model has no reasoning to choose; leave it out or send none")
    return kwargs


def _no_effort(sentence: str) -> ApiError:
    return ApiError(400, f"reasoning_effort: {sentence}", param="reasoning_effort", code="unsupported_value")


def _extras(body: ChatCompletionRequest, result: ChatResult) -> dict[str, Any]:
    """vLLM's fields about the prompt, where they were asked for."""
    extras: dict[str, Any] = {}
    if body.prompt_logprobs is not None:
        extras["prompt_logprobs"] = prompt_logprobs(result.prompt_logprobs, body.prompt_logprobs)
    if body.return_token_ids:
        extras["prompt_token_ids"] = list(result.prompt_token_ids)
    return extras


def _choice(body: ChatCompletionRequest, style: Style, index: int, result: ChatResult) -> AnswerChoice:
    extras = {"token_ids": list(result.token_ids)} if body.return_token_ids else {}
    return AnswerChoice(
        index=index,
        message=style.message(result),
        logprobs=ChoiceLogprobs(content=chat_logprobs(result.logprobs), refusal=None) if result.logprobs else None,
        finish_reason=style.finish_reason(result.finish_reason),
        **extras,
    )
