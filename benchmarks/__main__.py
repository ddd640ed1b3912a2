"""`python -m benchmarks`, and `make bench`."""

# Processes that this one starts import this file too, and need nothing of the command.
if __name__ == "__main__":
    from contextlib import suppress

    import typer

    from benchmarks.command import EPILOG, HELP, main

    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command(help=HELP, epilog=EPILOG)(main)
    with suppress(KeyboardInterrupt):
        command()
