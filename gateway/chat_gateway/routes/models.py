"""`/v1/models`: what callers may name in `model`."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from openai.types import Model
from pydantic import BaseModel

from chat_gateway.backend import Backend, ServedModel
from chat_gateway.dependencies import BackendDep
from chat_gateway.errors import SHOWN, ApiError

router = APIRouter(tags=["models"])


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


@router.get("/v1/models", response_model_exclude_unset=True)
async def list_models(backend: BackendDep) -> ModelList:
    """The models that are ready, each under its name in Triton and its aliases."""
    return ModelList(object="list", data=[_model(served, backend) for served in await backend.models()])


@router.get("/v1/models/{model_id:path}", response_model_exclude_unset=True)
async def retrieve_model(model_id: str, backend: BackendDep) -> Model:
    for served in await backend.models():
        if served.id == model_id:
            return _model(served, backend)
    raise ApiError(404, f"there is no model {model_id[:SHOWN]!r}", param="model", code="model_not_found")


def _model(served: ServedModel, backend: Backend) -> Model:
    return Model(id=served.id, created=backend.began, object="model", owned_by="triton")
