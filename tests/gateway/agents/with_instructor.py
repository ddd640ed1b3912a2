"""Instructor: typed answers in each mode in which the server sees to the type. See tests/gateway/programs.py."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:]
QUESTION: Any = [{"role": "user", "content": "What is the weather in Köln?"}]
MODES = ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "FUNCTIONS")
ARGUMENTS: Any = {"base_url": URL, "api_key": "none", "max_retries": 0}


class Place(BaseModel):
    """A place."""

    city: str = Field(examples=["Köln"])
    country: str = Field(examples=["DE"])


def in_mode(name: str) -> object:
    client = instructor.from_openai(OpenAI(**ARGUMENTS), mode=instructor.Mode[name])
    place = client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_model=Place, max_retries=0, temperature=0
    )
    assert isinstance(place, Place)
    return place.model_dump()


def partial() -> object:
    client = instructor.from_openai(OpenAI(**ARGUMENTS), mode=instructor.Mode.TOOLS)
    *_, place = client.chat.completions.create_partial(
        model=MODEL, messages=QUESTION, response_model=Place, max_retries=0, temperature=0
    )
    return place.model_dump()


async def asynchronous() -> object:
    client = instructor.from_openai(AsyncOpenAI(**ARGUMENTS), mode=instructor.Mode.JSON_SCHEMA)
    place = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_model=Place, max_retries=0, temperature=0
    )
    return place.model_dump()


if __name__ == "__main__":
    results = {name: in_mode(name) for name in MODES}
    json.dump(results | {"partial": partial(), "asynchronous": asyncio.run(asynchronous())}, sys.stdout)
