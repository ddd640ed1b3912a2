"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from fastapi import APIRouter
from openai.types.create_embedding_response import Usage
from starlette.requests import Request
from starlette.responses import Response

from chat_gateway.body import JsonRoute
from chat_gateway.dependencies import BackendDep, RequestIdDep, SettingsDep
from chat_gateway.disconnect import unless_gone
from chat_gateway.errors import ApiError
from chat_gateway.replies import described, reply
from chat_gateway.retries import retried
from chat_gateway.schemas.embeddings import EmbeddingRequest, EmbeddingResponse, Vector
from chat_gateway.schemas.inputs import each
from chat_gateway.tracing import trace_headers
from triton_chat.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from triton_chat.embeddings import EmbeddingResult

Encoding = Literal["float", "base64"]

_PLACE: Final = re.compile(r"^(?:row (\d+): )?(?:(text|token_ids): )?")

router = APIRouter(route_class=JsonRoute, tags=["embeddings"])


@router.post("/v1/embeddings", responses=described(EmbeddingResponse))
async def create_embeddings(
    body: EmbeddingRequest, request: Request, backend: BackendDep, settings: SettingsDep, request_id: RequestIdDep
) -> Response:
    """Turns texts into vectors."""
    inputs = each(body.input)
    limit = settings.max_embedding_inputs
    if len(inputs) > limit:
        raise ApiError(400, f"input: {len(inputs)} texts given; at most {limit} are allowed", param="input")
    model = await backend.resolve(body.model, "embeddings")
    headers = trace_headers()

    def embed() -> Awaitable[EmbeddingResult]:
        return backend.client.embed(inputs, model=model, dimensions=body.dimensions, headers=headers)

    with _places_in_input():
        result = await unless_gone(request.receive, retried(embed, request_id))
    tokens = sum(result.num_tokens)
    answer = EmbeddingResponse(
        object="list",
        data=[embedding(index, vector, body.encoding_format) for index, vector in enumerate(result.embeddings)],
        model=body.model,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return reply(answer)


def embedding(index: int, vector: npt.NDArray[np.float32], encoding: Encoding | None) -> Vector:
    if encoding != "base64":
        return Vector(object="embedding", index=index, embedding=vector.tolist())
    text = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return Vector(object="embedding", index=index, embedding=text)


@contextmanager
def _places_in_input() -> Iterator[None]:
    """The model names rows and tensors; here they are `input`."""
    try:
        yield
    except InvalidRequestError as error:
        raise type(error)(_PLACE.sub(_place, str(error), count=1)) from error


def _place(found: re.Match[str]) -> str:
    row, tensor = found.groups()
    if row is not None:
        return f"input.{row}: "
    return "" if tensor is None else "input: "
