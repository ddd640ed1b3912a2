"""OpenAI's own package: its parsers and accumulators. See tests/gateway/programs.py."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field


class Place(BaseModel):
    """Bounded, since a small model may find no end."""

    city: str = Field(examples=["Köln"], max_length=30)
    country: str = Field(examples=["DE"], max_length=30)
    population: int = Field(ge=0, le=10**8)


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str = Field(examples=["Köln"])


URL, MODEL = sys.argv[1:]
QUESTION: Any = [{"role": "user", "content": "What is the weather in Köln?"}]
TOOLS: Any = [pydantic_function_tool(GetWeather, name="get_weather")]
ARGUMENTS: Any = {"base_url": URL, "api_key": "none", "max_retries": 0}
client = OpenAI(**ARGUMENTS)


def parse() -> object:
    answer = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Place, temperature=0)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Place)
    return parsed.model_dump()


def parse_call() -> object:
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetWeather)
    return {"finish_reason": answer.choices[0].finish_reason, **call.function.parsed_arguments.model_dump()}


def stream_call() -> object:
    events = []
    with client.chat.completions.stream(
        model=MODEL,
        messages=QUESTION,
        tools=TOOLS,
        tool_choice="required",
        temperature=0,
        stream_options={"include_usage": True},
    ) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    message = final.choices[0].message
    (call,) = message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetWeather)
    return {
        "events": sorted(set(events)),
        "content": message.content,
        "call": {"id": call.id, "type": call.type, "name": call.function.name, "arguments": call.function.arguments},
        "finish_reason": final.choices[0].finish_reason,
        "usage": final.usage.model_dump(exclude_none=True) if final.usage else None,
    }


def stream_parse() -> object:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, response_format=Place, temperature=0) as stream:
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Place)
    return parsed.model_dump()


def round_trip() -> object:
    messages = list(QUESTION)
    called = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="required", temperature=0
    )
    messages.append(called.choices[0].message)
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": "12 °C"}
        for call in called.choices[0].message.tool_calls or ()
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, temperature=0)
    return answer.choices[0].message.content


def older_form() -> object:
    functions: Any = [{"name": "get_weather", "parameters": GetWeather.model_json_schema()}]
    messages = list(QUESTION)
    called = client.chat.completions.create(
        model=MODEL, messages=messages, functions=functions, function_call={"name": "get_weather"}, temperature=0
    )
    call = called.choices[0].message.function_call
    assert call is not None
    messages += [called.choices[0].message, {"role": "function", "name": call.name, "content": "12 °C"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, functions=functions, temperature=0)
    return {"name": call.name, "arguments": json.loads(call.arguments), "answer": answer.choices[0].message.content}


async def asynchronous() -> object:
    async with AsyncOpenAI(**ARGUMENTS) as other:
        parsing = other.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Place, temperature=0)
        async with other.chat.completions.stream(
            model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice="required", temperature=0
        ) as stream:
            (call,) = (await stream.get_final_completion()).choices[0].message.tool_calls or ()
        parsed = (await parsing).choices[0].message.parsed
    assert isinstance(parsed, Place)
    return {"parsed": parsed.model_dump(), "arguments": json.loads(call.function.arguments)}


if __name__ == "__main__":
    cases = (parse, parse_call, stream_call, stream_parse, round_trip, older_form)
    results = {case.__name__: case() for case in cases}
    json.dump(results | {"asynchronous": asyncio.run(asynchronous())}, sys.stdout)
