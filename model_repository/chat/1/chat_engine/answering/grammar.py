"""Grammars for constrained answers, compiled by `llguidance` for one tokenizer and kept."""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from chat_engine.answering.grammar_trial import GrammarTrial, TrialSetup, TrialUnavailableError
from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError, OverloadedError
from chat_engine.request import Constraint

log = logging.getLogger(__name__)

_KEPT = 128
# Of llguidance's limits those that bound the time of a mask, lower than its own; the figures are in decision 13.
_LIMITS: dict[str, int | bool] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "verbose_errors": False,
}

_TOO_COMPLEX = "too complex to be followed; make it smaller or simpler"
_UNUSABLE = "not possible with this model: its tokenizer is of a kind for which answers cannot be constrained"


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar.

    Attributes:
        field: of the request that it comes from.
    """

    field: str
    _tokenizer: LLTokenizer
    _matcher: LLMatcher

    def begin(self) -> LLMatcher:
        """A matcher before the first token."""
        return self._matcher.deep_copy()

    def behind(self, text: str) -> LLMatcher | None:
        """A matcher behind a text; None where that does not follow the grammar."""
        matcher = self.begin()
        tokens = self._tokenizer.tokenize_str(text, parse_special=True)
        return matcher if matcher.try_consume_tokens(tokens) == len(tokens) else None

    def places(self, reach: int) -> Places:
        """Where a text that follows the grammar may end; asked for `reach` characters back at most."""
        return Places(self._tokenizer, self.begin(), reach)


class Places:
    """Where a text, which comes character by character, is complete."""

    def __init__(self, tokenizer: LLTokenizer, matcher: LLMatcher, reach: int) -> None:
        self._tokenizer = tokenizer
        self._matcher = matcher
        self._complete = deque([matcher.is_accepting()], maxlen=reach + 1)

    def feed(self, char: str) -> None:
        """The next character."""
        follows = self._matcher.consume_tokens(self._tokenizer.greedy_tokenize(char))
        self._complete.append(follows and self._matcher.is_accepting())

    def may_end(self, back: int) -> bool:
        """Whether the text without its last `back` characters is complete."""
        return back < len(self._complete) and self._complete[-1 - back]


class Grammars:
    """Compiles grammars for one model. Safe from any thread.

    Args:
        tokenizer: the model's. Where llguidance cannot read it, every grammar is refused.
        vocab_size: of the model.
        end_ids: tokens that end an answer.
        config: limits.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: frozenset[int], config: EngineConfig) -> None:
        ends = tuple(sorted(end_ids))
        limits = {**_LIMITS, "max_grammar_size": config.max_grammar_symbols}
        self._limits = LLParserLimits(**limits)  # type: ignore[arg-type]
        self._tokenizer = _ll_tokenizer(tokenizer, vocab_size, ends)
        self._known: OrderedDict[str, LLMatcher | str] = OrderedDict()  # a text is why it is refused
        self._lock = threading.Lock()
        self._trial = None
        if self._tokenizer:
            special = {id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items()}
            self._trial = GrammarTrial(TrialSetup(vocab_size, ends, special, limits, config.grammar_seconds))

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises InvalidArgumentError; OverloadedError for a moment when the process for trials does not start.

        It may take as long as the settings allow twice over: once for the trial.
        """
        if self._tokenizer is None:
            raise InvalidArgumentError(_UNUSABLE, field=constraint.field)
        text = constraint.grammar
        with self._lock:
            found = self._known.pop(text, None)
        if found is None:
            found = self._compiled(text)
        with self._lock:
            self._known[text] = found
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        if isinstance(found, str):
            raise InvalidArgumentError(found, field=constraint.field)
        return Grammar(constraint.field, self._tokenizer, found)

    @property
    def usable(self) -> bool:
        """Whether answers of this model can be constrained at all."""
        return self._tokenizer is not None

    def close(self) -> None:
        """Ends the process for trials."""
        if self._trial:
            self._trial.close()

    def _compiled(self, text: str) -> LLMatcher | str:
        assert self._trial
        assert self._tokenizer
        try:
            survives = self._trial.survives(text)
        except TrialUnavailableError as error:
            raise OverloadedError("grammars cannot be compiled at the moment; try again later") from error
        if not survives:
            return _TOO_COMPLEX
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some find out only now; and the first mask is made for all who share it
        return explained(matcher.get_error()) if matcher.is_error() else matcher


def explained(error: str) -> str:
    """What llguidance says of a grammar, for its author: without the library's own terms and excerpts."""
    if any(sign in error for sign in _SIGNS_OF_SIZE):
        return _TOO_COMPLEX
    for sign, sentence in _SENTENCES.items():
        if sign in error:
            return sentence
    line = error.rpartition("\nerror: ")[2] if "\nerror: " in error else error  # the end of an error of a regex
    line = _EXCERPT.split(line)[0].split("; following ")[0]
    place = _PLACE.search(error)
    where = f"line {place[1]}: " if place and place[1] != "1" else ""  # what is not written by a caller has one line
    line = where + " ".join(_PLACE.sub("", line).replace(_OF_SCHEMA, "").split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


_SHOWN = 300
_EXCERPT = re.compile(r"\n *\d+ \| |<non-verbose/>|<state>")
_PLACE = re.compile(r"^(?:at )?(\d+)\(\d+\): ")
_OF_SCHEMA = "failed to compile JSON schema: "
_SIGNS_OF_SIZE = (
    "fuel", "too many", "Too many", "too big", "schema too large", "too complex", "too deeply", "Current row has",
    "Unable to determine if regex", "recursion limit", "precomputation", "Parser Error: token",
)  # fmt: skip
_SENTENCES = {
    "NoExtension": "no answer can follow it",
    "oneOf constraints are not supported": "oneOf is supported only where at most one of its schemas can hold",
    "is not present in a registry": "$ref to another document is not supported; put it under $defs",
    "look-around": "look-around (such as (?=...), \\b, ^ or $ in the middle) is not supported",
    "lookarounds": "look-around (such as (?=...), \\b, ^ or $ in the middle) is not supported",
}


def _ll_tokenizer(tokenizer: Tokenizer, vocab_size: int, ends: tuple[int, ...]) -> LLTokenizer | None:
    own = Tokenizer.from_str(tokenizer.to_str())
    own.no_padding()
    own.no_truncation()
    if not ends:
        log.warning("the model has no end token, so its answers cannot be constrained")
        return None
    try:
        return LLTokenizer(own.to_str(), n_vocab=vocab_size, eos_token=list(ends))
    except ValueError as error:
        log.warning("answers of this model cannot be constrained: llguidance cannot read its tokenizer: %s", error)
        return None
