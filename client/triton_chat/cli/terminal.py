"""Standard input and output: always UTF-8, with or without a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
from contextlib import suppress
from importlib import import_module
from typing import TextIO

from triton_chat.errors import InvalidRequestError
from triton_chat.types import ChatResult, PromptLogprob, TokenLogprob, ToolCall

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal may obey; line break and tab do no harm."""


def use_utf8() -> None:
    """Write UTF-8 whatever the locale says; the texts of a model are not limited to it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def piped_input() -> str | None:
    """The text on standard input if a pipe or a file is connected to it, without its last line break.

    Raises:
        InvalidRequestError: it is not UTF-8.
    """
    if sys.stdin is None or sys.stdin.closed:
        return None
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return None
    raw = sys.stdin.buffer.read()
    try:
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r") or None
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"standard input is not UTF-8 text: byte 0x{raw[error.start]:02x} at position {error.start}"
        ) from error


def write(text: str) -> None:
    """To standard output, at once. A terminal shows control characters and does not obey them; a pipe gets them."""
    _put(sys.stdout, _shown(sys.stdout, text))


def write_error(text: str) -> None:
    """To standard error, in the same way."""
    _put(sys.stderr, _shown(sys.stderr, text))


def write_dimmed(text: str) -> None:
    """To standard error, in the same way, and dimmed on a terminal: what is said beside the answer."""
    shown = _shown(sys.stderr, text)
    _put(sys.stderr, f"\x1b[2m{shown}\x1b[0m" if _dims() else shown)


def _put(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _shown(stream: TextIO, text: str) -> str:
    return _CONTROLS.sub(lambda found: _escaped(found[0]), text) if stream.isatty() else text


def discard_typed() -> None:
    """Forget what was typed before a question was shown: it is no answer to it."""
    with suppress(ImportError):  # where there is no termios
        termios = import_module("termios")
        with suppress(termios.error):
            termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _dims() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return sys.stderr.isatty() and not plain


def printable(text: str) -> str:
    """With what a terminal would not show, or would obey, written out."""
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode()


def shortened(text: str, limit: int) -> str:
    """Its beginning, and how much more there is."""
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text) - limit} more characters)"


def call_line(call: ToolCall, *, cut: bool = False) -> str:
    """A call for people, such as `get_weather(city="Paris", days=2)`; as it is where its arguments are no JSON object.

    Args:
        cut: whether the answer was.
    """
    if call.values is None:
        return printable(f"{call.name}({call.arguments}{' [cut]' if cut else ')'}")
    values = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.values.items())
    return printable(f"{call.name}({', '.join(values)})")


def write_json(document: object) -> None:
    """One JSON document to standard output."""
    write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def stats_line(result: ChatResult) -> str:
    """What an answer took, for people."""
    thought = f", {result.num_reasoning_tokens} of them reasoning," if result.num_reasoning_tokens else ""
    parts = [f"{result.num_output_tokens} tokens{thought} in {result.duration_s:.2f} s"]
    if result.tokens_per_s is not None:
        parts.append(f"{result.tokens_per_s:.1f} tokens/s")
    if result.ttft_s is not None:
        parts.append(f"first after {result.ttft_s * 1000:.0f} ms")
    cached = f", {result.num_cached_tokens} from the cache" if result.num_cached_tokens else ""
    parts.append(f"prompt {result.num_input_tokens}{cached}")
    return f"[{'; '.join(parts)}; {result.finish_reason or 'stopped'}]"


def logprob_lines(result: ChatResult) -> list[str]:
    """One line per token, of the prompt first: itself, its log probability, its alternatives."""
    lines = []
    entries: list[PromptLogprob | TokenLogprob] = [*result.prompt_logprobs, *result.logprobs]
    for entry in entries:
        others = "  ".join(f"{other.token!r} {other.logprob:.3f}" for other in entry.top_logprobs)
        value = "-" if entry.logprob is None else f"{entry.logprob:.3f}"
        lines.append(f"{entry.token!r} {value}  {others}".rstrip())
    return lines


def token_id_lines(result: ChatResult) -> list[str]:
    """The ids of the prompt and of the answer, a line each, where the server told them."""
    told = {"prompt": result.prompt_token_ids, "answer": result.token_ids}
    return [f"{name}: {' '.join(map(str, ids))}" for name, ids in told.items() if ids]
