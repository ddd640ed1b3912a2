"""Run as a program: compiles grammars for a trial, one a line, and answers each with a line once it is done.

Its first line is the set-up, to which it answers once it is ready. A grammar that takes too long, needs too much memory
or overflows the stack ends this process, and nothing else. It needs no more of the model than the ids and names of
its special tokens: what makes a compilation expensive is the grammar.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from typing import Any

_STACK_BYTES = 1 << 20  # less than any thread has that compiles the grammar for good
_MEMORY_BYTES = 2 << 30
_PATIENCE = 5  # times as long by the clock as on the processor
_MAX_BYTE = 256


class _Bytes:
    """A vocabulary of single bytes and special tokens, as large as the model's; in the form that llguidance wants."""

    bos_token_id = None

    def __init__(self, vocab_size: int, special: dict[int, str], end_id: int) -> None:
        free = (token_id for token_id in range(vocab_size) if token_id not in special)
        self.eos_token_id = end_id
        self.special_token_ids = list(special)
        self.tokens = [b""] * vocab_size
        for byte, token_id in zip(range(_MAX_BYTE), free, strict=False):
            self.tokens[token_id] = bytes([byte])
        for token_id, name in special.items():
            self.tokens[token_id] = name.encode()

    def __call__(self, _text: bytes) -> list[int]:
        return []  # nothing is tokenised here


def main() -> None:
    """Works until the end of its input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who started this
    first = sys.stdin.readline()
    if not first:  # nobody wanted a grammar
        return
    setup = json.loads(first)
    sys.path[:] = setup["path"]
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper  # noqa: PLC0415 - path first

    special = {int(token_id): name for token_id, name in setup["special"].items()}
    vocabulary: Any = _Bytes(setup["vocab_size"], special, setup["end_ids"][0])
    tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), setup["vocab_size"], setup["end_ids"])
    limits = LLParserLimits(**setup["limits"])

    def compile_(grammar: str) -> None:
        LLMatcher(tokenizer, grammar, log_level=0, limits=limits).compute_bitmask()

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(_STACK_BYTES)
    _answer()
    for line in sys.stdin:
        # A signal without a handler ends the process: SIGPROF where the grammar takes too long, and SIGALRM where this
        # process gets no time to try it.
        signal.setitimer(signal.ITIMER_PROF, setup["seconds"])
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE * setup["seconds"])
        thread = threading.Thread(target=compile_, args=[json.loads(line)])
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _answer()


def _answer() -> None:
    sys.stdout.write("done\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
