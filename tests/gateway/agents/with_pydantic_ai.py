"""Pydantic AI: an agent with a tool and a typed result. See tests/gateway/programs.py."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL = sys.argv[1:]
QUESTION = "What is the weather in Köln?"


class Place(BaseModel):
    """With bounds: a very small model may never find the end of a text."""

    city: str = Field(examples=["Köln"], max_length=30)
    country: str = Field(examples=["DE"], max_length=30)


model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key="none"))


def agent(output_type: Any = str, asked: list[str] | None = None) -> Agent[None, Any]:
    made: Agent[None, Any] = Agent(model, output_type=output_type, retries=0, model_settings={"temperature": 0})
    if asked is not None:

        @made.tool_plain
        def get_weather(city: str) -> str:
            """The weather of a city."""
            asked.append(city)
            return f"12 °C in {city}"

    return made


def tool() -> object:
    asked: list[str] = []
    result = agent(asked=asked).run_sync(QUESTION)
    return {"asked": asked, "answer": result.output}


def typed() -> object:
    """As the arguments of a call, and as a response format."""
    results = {}
    for name, output in (("tool", Place), ("native", NativeOutput(Place))):
        place = agent(output).run_sync(QUESTION).output
        assert isinstance(place, Place)
        results[name] = place.model_dump()
    return results


async def stream() -> object:
    async with agent().run_stream(QUESTION) as result:
        return "".join([text async for text in result.stream_text(delta=True)])


if __name__ == "__main__":
    results = {case.__name__: case() for case in (tool, typed)}
    json.dump(results | {"stream": asyncio.run(stream())}, sys.stdout)
