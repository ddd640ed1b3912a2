"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM has them."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from chat_gateway.answers.replies import described, reply
from chat_gateway.errors import renamed
from chat_gateway.http.body import JsonRoute
from chat_gateway.http.dependencies import RequestIdDep, UpstreamDep
from chat_gateway.http.disconnect import unless_gone
from chat_gateway.http.tracing import trace_headers
from chat_gateway.schemas.fields import ModelName
from chat_gateway.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizerConfig,
    TokenizeRequest,
    TokenizeResponse,
)
from triton_chat.client import AsyncChatClient
from triton_chat.errors import InvalidRequestError
from triton_chat.types import TokenizerInfo, Tokens

router = APIRouter(route_class=JsonRoute, tags=["tokens"])


@router.post("/tokenize", responses=described(TokenizeResponse))
async def tokenize(
    body: TokenizeRequest, request: Request, upstream: UpstreamDep, request_id: RequestIdDep
) -> Response:
    """The token ids of a text, or of a conversation as the model would see it."""
    model = await upstream.resolve_chat(body.model)
    headers = trace_headers()

    def ask(client: AsyncChatClient) -> Awaitable[Tokens]:
        return client.tokenize(
            body.to_model(),
            text=body.prompt,
            model=model,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            tools=body.tools_of_model(),
            chat_template_kwargs=body.chat_template_kwargs or None,
            add_special_tokens=body.add_special_tokens,
            return_token_strs=body.return_token_strs,
            headers=headers,
        )

    with _renamed_fields(body.names):
        tokens = await unless_gone(request.receive, upstream.ask_tokenizer(ask, request_id))
    names = list(tokens.token_strs) if body.return_token_strs else None
    ids = list(tokens.token_ids)
    return reply(TokenizeResponse(count=len(ids), max_model_len=tokens.max_model_len, tokens=ids, token_strs=names))


@router.post("/detokenize", responses=described(DetokenizeResponse))
async def detokenize(
    body: DetokenizeRequest, request: Request, upstream: UpstreamDep, request_id: RequestIdDep
) -> Response:
    """The text of token ids."""
    model = await upstream.resolve_chat(body.model)
    headers = trace_headers()

    def ask(client: AsyncChatClient) -> Awaitable[Tokens]:
        return client.detokenize(body.tokens, model=model, headers=headers)

    with _renamed_fields({"token_ids": "tokens"}):
        tokens = await unless_gone(request.receive, upstream.ask_tokenizer(ask, request_id))
    return reply(DetokenizeResponse(prompt=tokens.text))


@router.head("/tokenizer_info", include_in_schema=False)
@router.get("/tokenizer_info", responses=described(TokenizerConfig))
async def tokenizer_info(
    request: Request, upstream: UpstreamDep, request_id: RequestIdDep, model: ModelName | None = None
) -> Response:
    """What the checkpoint's `tokenizer_config.json` says; `model` may be left out where only one is served."""
    target = await upstream.resolve_chat(model)
    headers = trace_headers()

    def ask(client: AsyncChatClient) -> Awaitable[TokenizerInfo]:
        return client.tokenizer_info(target, headers=headers)

    info = await unless_gone(request.receive, upstream.ask_tokenizer(ask, request_id))
    return reply(TokenizerConfig.model_validate(info.config))


@contextmanager
def _renamed_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Takes the model's names of fields, to those here."""
    try:
        yield
    except InvalidRequestError as error:
        raise renamed(error, names) from error
