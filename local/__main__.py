from __future__ import annotations

import typer

from local import console, demo, serve

app = typer.Typer(help="Run triton-chat on this machine, without Docker.", no_args_is_help=True, add_completion=False)
app.command("demo", help="Start the server, show what it can do, stop it.")(demo.run)
app.command("serve", help="Serve Triton, the gateway and the page until Ctrl-C.")(serve.run)
app.command("triton", help="Serve a model repository of your own, Triton alone, until Ctrl-C.")(serve.run_triton)


@app.command("preflight")
def check() -> None:
    """Check this machine, and say how to fix what is missing."""
    console.checked(serve.stack_of)
    console.out.print("All checks passed.")


if __name__ == "__main__":
    app(prog_name="python -m local")
