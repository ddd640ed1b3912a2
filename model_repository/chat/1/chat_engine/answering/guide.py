"""What one answer must follow: nothing, a grammar from its first token on, or one that opens in the middle."""

from __future__ import annotations

from dataclasses import replace

from llguidance import LLMatcher

from chat_engine.answering.grammar import Grammar, Grammars, Places
from chat_engine.errors import InvalidArgumentError
from chat_engine.request import ChatRequest, Constraint


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
        self._call = call
        self._single = single
        self.stop_ids = stop_ids
        self._end_ids = end_ids
        self.ignored = end_ids - stop_ids
        """Made only where the grammar leaves nothing else."""
        self._matcher: LLMatcher | None = None
        self._field = ""
        self._then_ends = False
        self._is_over = False
        if grammar:
            self._follow(grammar, grammar.begin(), then_ends=True)

    def open_call(self, text: str) -> None:
        """The model has begun a call, with this text of it; the rest has to follow, where it still can.

        Behind the call the answer is free again, or over.
        """
        if self._call is None or self._matcher is not None:
            return
        matcher = self._call.behind(text)
        if matcher is not None:
            self._follow(self._call, matcher, then_ends=self._single)
            self._look_whether_it_is_over()

    def _follow(self, grammar: Grammar, matcher: LLMatcher, *, then_ends: bool) -> None:
        self._matcher, self._field = matcher, grammar.field
        self._then_ends, self._is_over = then_ends, False

    def _look_whether_it_is_over(self) -> None:
        if self._matcher is None or not self._matcher.is_stopped():  # which it is after an error, too
            return
        if self._then_ends or self._matcher.is_error():
            self._is_over = True
        else:
            self._matcher = None

    @property
    def has_calls(self) -> bool:
        """Whether it knows what calls must follow that the model begins by itself."""
        return self._call is not None

    @property
    def matcher(self) -> LLMatcher | None:
        """What says which token may come next; None where any may, or none.

        This does not ask the matcher itself, which may be with another thread: see `masks.py`.
        """
        return None if self._is_over else self._matcher

    @property
    def error(self) -> InvalidArgumentError | None:
        """What the caller is told where the answer can no longer be followed."""
        if self._matcher is None or not self._matcher.is_error():
            return None
        return InvalidArgumentError(
            "became too complex to be followed within this answer; make it simpler", field=self._field
        )

    @property
    def is_finished(self) -> bool:
        """Whether the answer is over: it is complete, and nothing can be added."""
        return self._is_over and self._matcher is not None and not self._matcher.is_error()

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
        self._look_whether_it_is_over()


def guide_of(
    request: ChatRequest, end_ids: frozenset[int], grammars: Grammars | None, *, leads_calls: bool = True
) -> tuple[Guide, Places | None]:
    """What the answer to a request must follow, and where a stop string may end it; None: anywhere.

    It compiles the request's grammars, in the caller's thread.

    Args:
        request: what is asked for.
        end_ids: tokens that end answers of this model.
        grammars: compiles; None: a request with a constraint is refused.
        leads_calls: whether the engine can follow a grammar that begins in the middle of an answer. Where it cannot,
            calls that the model begins by itself are free.

    Raises InvalidArgumentError, or OverloadedError for a moment.
    """
    sampling, constraint, reply = request.sampling, request.constraint, request.reply
    stop_ids = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else end_ids)
    grammar = _compiled(constraint, grammars) if constraint else None
    places = None
    if constraint and sampling.stop:
        content = _compiled(replace(constraint, grammar=constraint.content or constraint.grammar), grammars)
        places = content.places(max(map(len, sampling.stop)))
    call, single = None, False
    if leads_calls and reply and reply.opened and grammars and grammars.usable:
        call, single = _compiled(reply.opened, grammars), reply.single
    return Guide(stop_ids, end_ids, grammar, call, single=single), places


def _compiled(constraint: Constraint, grammars: Grammars | None) -> Grammar:
    if grammars is None:
        raise InvalidArgumentError("not possible with this model", field=constraint.field)
    return grammars.compile(constraint)
