"""Starts the server, asks it two questions as any client would, and stops it."""

from __future__ import annotations

import time
from collections.abc import Mapping

import typer

from local import console
from local.settings import TritonSettings
from local.triton import LocalTriton
from triton_chat import ChatClient, TritonChatError

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
    return LocalTriton(TritonSettings.from_environment(environment))


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
    sent = time.perf_counter()
    ttft_s = 0.0
    tokens = 0
    messages = [{"role": "user", "content": question}]
    for event in client.stream(messages, max_tokens=MAX_TOKENS, temperature=0.0):
        ttft_s = ttft_s or time.perf_counter() - sent
        tokens = event.num_output_tokens
        console.out.print(event.text, end="", markup=False)
    rate = tokens / (time.perf_counter() - sent)
    console.out.print(f"\n[dim]first token after {ttft_s * 1000:.0f} ms, {tokens} tokens, {rate:.0f} tokens/s[/dim]")
