"""A request in this engine: its tokens so far, and how much of their KV is computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from chat_engine.native.kv_cache import BlockTable
from chat_engine.native.speculation import Guesses
from chat_engine.request import ChatRequest


@dataclass(eq=False)
class Sequence:
    """A request in the engine: its tokens so far and how much of their KV is computed.

    `guesses` is None where none may be made. `num_scored` is from how many of its prompt's tokens the log-probability
    of the next has been taken. It outlasts preemptions, as what has been handed out does.
    """

    request: ChatRequest
    tokens: list[int] = field(init=False)
    table: BlockTable = field(default_factory=BlockTable)
    guesses: Guesses | None = None
    num_computed: int = 0
    num_cached: int = 0
    num_scored: int = 0
    first_scheduled: float | None = None
    first_token: float | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.tokens)

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def num_output(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens whose KV is still to be computed."""
        return len(self.tokens) - self.num_computed

    @property
    def num_unscored(self) -> int:
        """Tokens of the prompt whose logits are still wanted, to score the next token of the prompt."""
        wanted = 0 if self.request.sampling.prompt_logprobs is None else self.num_prompt - 1
        return wanted - self.num_scored

    @property
    def num_reusable(self) -> int:
        """Tokens, from the first on, whose KV is enough: cached ones need not be computed again for their logits."""
        return self.num_scored if self.num_unscored else self.num_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the newest token is still to be computed."""
        return self.num_uncomputed > 1
