"""What one answer must follow: nothing, a grammar from its first token on, or one that opens in the middle."""

from __future__ import annotations

from llguidance import LLMatcher

from chat_engine.errors import InvalidArgumentError
from chat_engine.native.grammar import Grammar


class Guide:
    """Follows one answer. It outlasts preemptions, as the tokens do.

    Args:
        stop_ids: tokens that end the answer.
        end_ids: tokens that end answers of this model, those that the request ignores among them.
        grammar: of the whole answer.
        call: of a call that the model begins by itself.
        single: whether the answer is over with such a call.
    """

    def __init__(
        self,
        stop_ids: frozenset[int],
        end_ids: frozenset[int] = frozenset(),
        grammar: Grammar | None = None,
        call: Grammar | None = None,
        *,
        single: bool = False,
    ) -> None:
        self.grammar = grammar
        self._call = call
        self._single = single
        self.stop_ids = stop_ids
        self._end_ids = end_ids
        self.ignored = end_ids - stop_ids
        """Made only where the grammar leaves nothing else."""
        self._matcher: LLMatcher | None = None
        self._field = ""
        self._then_ends = False
        if grammar:
            self.open(grammar, then_ends=True)

    def open(self, grammar: Grammar, *, then_ends: bool = False) -> None:
        """What follows must follow `grammar`.

        With `then_ends`, the answer is over with it; otherwise what follows is free again.
        """
        self._follow(grammar, grammar.begin(), then_ends)

    def open_call(self, text: str) -> None:
        """The model has begun a call, with this text of it; the rest has to follow. Not where it cannot any more."""
        if self._call is None or self._matcher is not None:
            return
        matcher = self._call.behind(text)
        if matcher is not None:
            self._follow(self._call, matcher, self._single)
            self._release()

    def _follow(self, grammar: Grammar, matcher: LLMatcher, then_ends: bool) -> None:
        self._matcher, self._field, self._then_ends = matcher, grammar.field, then_ends

    def _release(self) -> None:
        """Once the grammar is finished, what follows is free, unless nothing may follow."""
        if self._matcher and not self._then_ends and self._matcher.is_stopped() and not self._matcher.is_error():
            self._matcher = None

    @property
    def matcher(self) -> LLMatcher | None:
        """What says which token may come next; None where any may."""
        return None if self.is_finished or self.has_failed else self._matcher

    @property
    def has_failed(self) -> bool:
        """Whether the answer can no longer be followed."""
        return self._matcher is not None and self._matcher.is_error()

    @property
    def error(self) -> InvalidArgumentError | None:
        """What the caller is told then."""
        if not self.has_failed:
            return None
        return InvalidArgumentError(
            "became too complex to be followed within this answer; make it simpler", field=self._field
        )

    @property
    def may_end(self) -> bool:
        """Whether the answer may be over: its grammar is complete, or there is none."""
        return self._matcher is None or self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether the answer is over: it is complete, and nothing can be added."""
        return self._then_ends and self._matcher is not None and self._matcher.is_stopped() and not self.has_failed

    def ends_with(self, token_id: int) -> bool:
        """Whether the answer ends with this token, as the next one."""
        if self._matcher is None:
            return token_id in self.stop_ids
        return (token_id in self.stop_ids or token_id in self._end_ids) and self._matcher.is_accepting()

    def append(self, token_id: int) -> None:
        """Notes a token that has been made, and does not end the answer."""
        if self._matcher is None:
            return
        self._matcher.consume_token(token_id)
        self._release()
