"""`POST /v1/embeddings`.

A thousand vectors are megabytes of numbers, and to write them takes long enough to be felt by every stream of the
process. So the answer is written piece by piece, with a turn for the others after each.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from fastapi import APIRouter
from openai.types.create_embedding_response import Usage
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from chat_gateway.answers.replies import described
from chat_gateway.errors import ApiError
from chat_gateway.http.body import JsonRoute
from chat_gateway.http.dependencies import RequestIdDep, SettingsDep, UpstreamDep
from chat_gateway.http.disconnect import unless_gone
from chat_gateway.http.tracing import trace_headers
from chat_gateway.schemas.embeddings import EmbeddingRequest, EmbeddingResponse
from chat_gateway.schemas.inputs import each
from chat_gateway.upstream.server import Server
from triton_chat.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from triton_chat.embeddings import EmbeddingResult

Encoding = Literal["float", "base64"]

_TENSORS: Final = ("text", "token_ids")
_JSON: Final = "application/json"
_PIECE: Final = 64 * 1024
"""Bytes that are written at once, or one vector if that is more."""

router = APIRouter(route_class=JsonRoute, tags=["embeddings"])


@router.post("/v1/embeddings", responses=described(EmbeddingResponse))
async def create_embeddings(
    body: EmbeddingRequest, request: Request, upstream: UpstreamDep, settings: SettingsDep, request_id: RequestIdDep
) -> Response:
    """Turns texts into vectors."""
    inputs = each(body.input)
    limit = settings.max_embedding_inputs
    if len(inputs) > limit:
        sentence = f"input: {len(inputs)} texts given; at most {limit} are allowed in one request"
        raise ApiError(400, sentence, param="input", code="invalid_value")
    model = await upstream.resolve(body.model, "embeddings")
    headers = trace_headers()

    def embed(server: Server) -> Awaitable[EmbeddingResult]:
        return server.client.embed(
            inputs,
            model=model,
            dimensions=body.dimensions,
            truncate_prompt_tokens=body.truncate_prompt_tokens,
            truncation_side=body.truncation_side,
            headers=headers,
        )

    with _places_in_input(is_list=inputs is body.input):
        result = await unless_gone(request.receive, upstream.ask(model, embed, request_id))
    pieces = written(result, body.model, body.encoding_format)
    first = next(pieces)
    second = next(pieces, None)
    if second is None:
        return Response(first, media_type=_JSON)
    return StreamingResponse(unhurried(first, second, pieces), media_type=_JSON)


def written(result: EmbeddingResult, model: str, encoding: Encoding | None) -> Iterator[bytes]:
    """An `EmbeddingResponse` as JSON, in pieces."""
    tokens = sum(result.num_tokens)
    usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
    piece = bytearray(b'{"object":"list","data":[')
    for index, vector in enumerate(result.embeddings):
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
        entry = {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)}
        piece += b"," * (index > 0) + to_json(entry)
    piece += b'],"model":' + to_json(model) + b',"usage":' + to_json(usage) + b"}"
    yield bytes(piece)


def _encoded(vector: npt.NDArray[np.float32], encoding: Encoding | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


async def unhurried(first: bytes, second: bytes, others: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces, with a turn for everybody else after each."""
    yield first
    yield second
    for piece in others:
        await asyncio.sleep(0)
        yield piece


@contextmanager
def _places_in_input(*, is_list: bool) -> Iterator[None]:
    """The model names rows and tensors; here they are `input`."""
    try:
        yield
    except InvalidRequestError as error:
        if error.row is None and error.field not in _TENSORS:
            raise
        raise error.placed(field=f"input[{error.row or 0}]" if is_list else "input") from error
