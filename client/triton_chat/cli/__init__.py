"""The command `triton-chat`."""

from __future__ import annotations

from typing import Annotated

import typer

import triton_chat
from triton_chat.cli import answers, helptexts, repl, status, terminal
from triton_chat.cli import embed as embedding
from triton_chat.cli.exits import guarded
from triton_chat.cli.options import Connection, RequestOptions, chat_flags, connection_flags, request_flags, takes

app = typer.Typer(
    name="triton-chat",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=helptexts.EPILOG,
)

System = Annotated[str | None, typer.Option("--system", help="A system prompt, set before the conversation.")]


def _version(wanted: bool) -> None:
    if wanted:
        terminal.write(f"triton-chat {triton_chat.__version__}\n")
        raise typer.Exit


@app.callback(help=helptexts.MAIN)
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Only carries the flags that stand before a command."""


@app.command(help=helptexts.ASK, epilog=helptexts.EPILOG)
@guarded
@takes(chat_flags)
def ask(
    options: RequestOptions,
    question: Annotated[str | None, typer.Argument(help="The question; piped text is added to it.")] = None,
    system: System = None,
) -> None:
    answers.ask(options, question, system)


@app.command(help=helptexts.CHAT, epilog=helptexts.EPILOG)
@guarded
@takes(chat_flags, refused=("as_json", "logprobs", "prompt_logprobs", "return_token_ids"))
def chat(
    options: RequestOptions,
    system: System = None,
    tool_module: Annotated[
        str | None,
        typer.Option(
            "--tool-module", metavar="FILE", help="A Python file whose public functions the model may call; it is run."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run the calls of --tool-module without asking.")] = False,
    tool_timeout: Annotated[float, typer.Option(help="Seconds that a call may take.", min=0.001)] = 30.0,
    max_rounds: Annotated[int, typer.Option(help="How many answers in a row may call.", min=1)] = 10,
) -> None:
    repl.chat(options, system, repl.ToolFlags(tool_module, yes, tool_timeout, max_rounds))


@app.command(help=helptexts.COMPLETE, epilog=helptexts.EPILOG)
@guarded
@takes(request_flags)
def complete(
    options: RequestOptions,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; without it, standard input is read.")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt too.")] = False,
) -> None:
    answers.complete(options, prompt, echo)


@app.command(help=helptexts.EMBED, epilog=helptexts.EPILOG)
@guarded
@takes(connection_flags)
def embed(
    connection: Connection,
    texts: Annotated[list[str] | None, typer.Argument(help="The texts; the lines of piped text are added.")] = None,
    model: Annotated[str, typer.Option(help="Name of the model.")] = "embeddings",
    dimensions: Annotated[int | None, typer.Option(help="Keep only the first so many components.", min=1)] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for all texts.", min=0.001)] = None,
) -> None:
    embedding.embed(embedding.EmbedOptions(connection, model, dimensions, timeout), texts or [])


@app.command(help=helptexts.MODELS, epilog=helptexts.EPILOG)
@guarded
@takes(connection_flags)
def models(connection: Connection) -> None:
    status.models(connection)


@app.command("status", help=helptexts.STATUS, epilog=helptexts.EPILOG)
@guarded
@takes(connection_flags)
def _status(
    connection: Connection,
    metrics_url: Annotated[
        str | None, typer.Option(help="Triton's metrics page; by default port 8002 of the same host.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds over which tokens per second are counted.", min=0.0)] = 1.0,
) -> None:
    status.status(connection, metrics_url, watch, interval)


def main() -> None:
    """Entry point of the `triton-chat` command."""
    terminal.use_utf8()
    app()
