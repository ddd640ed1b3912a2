"""Starts the server, asks it two questions as any client would, and stops it."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from local import console
from local.options import TritonOptions
from local.triton import LocalTriton
from triton_chat import ChatClient, ChatResult, Collector, TritonChatError

QUESTIONS = ("What can you do?", "你是谁？")
MAX_TOKENS = 128


def run() -> None:
    try:
        with console.running(_server) as server:
            _ask_all(server)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    console.out.print("\nStopped. To keep it running: make serve")


def _server(environment: Mapping[str, str]) -> LocalTriton:
    return LocalTriton(TritonOptions.from_environment(environment))


def _ask_all(server: LocalTriton) -> None:
    with ChatClient(server.grpc_address) as client:
        try:
            for question in QUESTIONS:
                _ask(client, question)
        except TritonChatError as error:
            console.err.print(f"The question failed: {error}", markup=False)
            raise typer.Exit(1) from error


def _ask(client: ChatClient, question: str) -> None:
    console.out.print(f"\n[bold]>[/bold] {question}")
    answer = Collector()
    messages = [{"role": "user", "content": question}]
    for event in client.stream(messages, max_tokens=MAX_TOKENS, temperature=0.0):
        answer.add(event)
        console.out.print(event.text, end="", markup=False)
    console.out.print(f"\n[dim]{figures(answer.result())}[/dim]")


def figures(result: ChatResult) -> str:
    """The line below an answer, such as `first token after 40 ms, 57 tokens, 121 tokens/s`."""
    parts = [
        f"first token after {result.ttft_s * 1000:.0f} ms" if result.ttft_s is not None else "",
        f"{result.num_output_tokens} tokens",
        f"{result.tokens_per_s:.0f} tokens/s" if result.tokens_per_s is not None else "",
    ]
    return ", ".join(part for part in parts if part)
