"""Starts the server, shows what any client can ask of it, and stops it.

Two questions, a call of a tool and its result, an answer that is JSON, and one that the model thinks about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from local import console
from local.options import TritonOptions
from local.triton import LocalTriton
from triton_chat import ChatClient, ChatResult, Collector, InvalidRequestError, TritonChatError
from triton_chat.types import Message, ToolCall

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from triton_chat.types import CallOptions

QUESTIONS = ("What can you do?", "你是谁？")
MAX_TOKENS = 128

TOOL_QUESTION = "What is the weather in Paris?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

JSON_QUESTION = "Anna is 31 years old. Answer as JSON."
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

THINKING_QUESTION = "Which is larger, 48 or 73?"


def run() -> None:
    try:
        with console.running(_server) as server:
            _show_all(server)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    console.out.print(f"\nStopped. To keep it running: {make_serve(server.options.engine)}")


def make_serve(engine: str) -> str:
    """The command that keeps the same server running."""
    return "make serve" if engine == TritonOptions.engine else f"make serve ENGINE={engine}"


def _server(environment: Mapping[str, str]) -> LocalTriton:
    return LocalTriton(TritonOptions.from_environment(environment))


def _show_all(server: LocalTriton) -> None:
    with ChatClient(server.grpc_address) as client:
        try:
            for question in QUESTIONS:
                ask(client, question)
            for show in (call_a_tool, answer_as_json, think_first):
                _if_the_model_can(show, client)
        except TritonChatError as error:
            console.err.print(f"The question failed: {error}", markup=False)
            raise typer.Exit(1) from error


def _if_the_model_can(show: Callable[[ChatClient], None], client: ChatClient) -> None:
    """Another model than tiny-chat may have no template for it, which is no reason to end."""
    try:
        show(client)
    except InvalidRequestError as error:
        console.out.print(f"Not with this model: {error}", style="dim", markup=False)


def ask(client: ChatClient, question: str) -> None:
    show_question(question)
    result = answer(client, [_user(question)])
    console.out.print(f"[dim]{figures(result)}[/dim]")


def call_a_tool(client: ChatClient) -> None:
    """The model asks for a call, this program makes it, and the model answers with its result."""
    show_question(TOOL_QUESTION, "with the tool get_weather")
    messages = [_user(TOOL_QUESTION)]
    calls = answer(client, messages, tools=[WEATHER]).tool_calls
    if not calls:
        return
    messages += [_assistant(calls), *(_result_of(call) for call in calls)]
    answer(client, messages, tools=[WEATHER])


def answer_as_json(client: ChatClient) -> None:
    show_question(JSON_QUESTION, "with a JSON schema")
    answer(client, [_user(JSON_QUESTION)], structured_outputs={"json": PERSON})


def think_first(client: ChatClient) -> None:
    show_question(THINKING_QUESTION, "with thinking")
    answer(client, [_user(THINKING_QUESTION)], chat_template_kwargs={"enable_thinking": True})


def get_weather(city: str) -> str:
    """Stands for a service that knows."""
    return f"sunny, {15 + len(city)} °C"


def _result_of(call: ToolCall) -> Message:
    console.out.print(f"→ {call.name}({call.arguments})", style="cyan", markup=False)
    result = get_weather(json.loads(call.arguments)["city"])
    console.out.print(f"← {result}", style="cyan", markup=False)
    return {"role": "tool", "tool_call_id": call.id, "content": result}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(calls: Sequence[ToolCall]) -> Message:
    """The model's own turn, as the next request repeats it."""
    tool_calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
    return {"role": "assistant", "content": None, "tool_calls": tool_calls}


def show_question(question: str, how: str = "") -> None:
    console.out.print(f"\n[bold]>[/bold] {question}{f'  [dim]({how})[/dim]' if how else ''}")


def answer(client: ChatClient, messages: Sequence[Message], **options: Unpack[CallOptions]) -> ChatResult:
    """Prints it as it comes, what the model thinks dimmed above what it says."""
    collector = Collector()
    line = ""
    asked: CallOptions = {"max_tokens": MAX_TOKENS, "temperature": 0.0, **options}
    for event in client.stream(messages, **asked):
        collector.add(event)
        console.out.print(event.reasoning, end="", style="dim", markup=False)
        if event.text and line == "thought":
            console.out.print()
        console.out.print(event.text, end="", markup=False)
        line = "said" if event.text else "thought" if event.reasoning else line
    if line:
        console.out.print()
    return collector.result()


def figures(result: ChatResult) -> str:
    """The line below an answer, such as `first token after 40 ms, 57 tokens, 121 tokens/s`."""
    parts = [
        f"first token after {result.ttft_s * 1000:.0f} ms" if result.ttft_s is not None else "",
        f"{result.num_output_tokens} tokens",
        f"{result.tokens_per_s:.0f} tokens/s" if result.tokens_per_s is not None else "",
    ]
    return ", ".join(part for part in parts if part)
