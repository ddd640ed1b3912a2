"""langchain-openai: tools and structured output. See tests/gateway/programs.py."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import reduce
from operator import add
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:]
QUESTION = "What is the weather in Köln?"


class Place(BaseModel):
    """A place."""

    city: str = Field(examples=["Köln"])
    country: str = Field(examples=["DE"])


class _Arguments(BaseModel):
    city: str = Field(examples=["Köln"])


@tool(args_schema=_Arguments)
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"12 °C in {city}"


arguments: Any = {"base_url": URL, "api_key": "none", "model": MODEL, "temperature": 0, "max_retries": 0}
llm = ChatOpenAI(**arguments)


def bind_tools() -> object:
    """The call, then the answer after its result."""
    messages: list[Any] = [HumanMessage(QUESTION)]
    called = llm.bind_tools([get_weather], tool_choice="any").invoke(messages)
    messages += [called, *(ToolMessage(get_weather.invoke(c["args"]), tool_call_id=c["id"]) for c in called.tool_calls)]
    answer = llm.bind_tools([get_weather]).invoke(messages)
    return {"calls": [[call["name"], call["args"]] for call in called.tool_calls], "answer": answer.content}


def stream() -> object:
    chunks = llm.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False).stream(QUESTION)
    message = reduce(add, chunks)
    return [[call["name"], call["args"]] for call in message.tool_calls]


def named() -> object:
    called = llm.bind_tools([get_weather], tool_choice="get_weather", strict=True).invoke(QUESTION)
    return [[call["name"], call["args"]] for call in called.tool_calls]


def with_structured_output() -> object:
    results = {}
    for method in ("json_schema", "function_calling"):
        place = llm.with_structured_output(Place, method=method).invoke(QUESTION)
        assert isinstance(place, Place)
        results[method] = place.model_dump()
    return results


def json_mode() -> object:
    answer = llm.with_structured_output(None, method="json_mode").invoke(f"{QUESTION} Answer in JSON.")
    assert isinstance(answer, dict)
    return answer


async def asynchronous() -> object:
    place = await llm.with_structured_output(Place).ainvoke(QUESTION)
    assert isinstance(place, Place)
    return place.model_dump()


if __name__ == "__main__":
    cases = (bind_tools, stream, named, with_structured_output, json_mode)
    results = {case.__name__: case() for case in cases}
    json.dump(results | {"asynchronous": asyncio.run(asynchronous())}, sys.stdout)
