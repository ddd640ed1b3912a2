"""Pieces of grammars in llguidance's form of Lark (its docs/syntax.md), for the tokens of one model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from chat_engine.answer_format import AnswerFormat
from chat_engine.reading.special_tokens import any_of
from chat_engine.reading.structured import json_schema

NOTHING = '""'
ANY = r"(.|\n)*"
_TAG = re.compile(r"<.*>", re.DOTALL)
_BLANKS = r"/[ \t\r\n]{0,8}/"


class Lark:
    """Writes rules in which special tokens are tokens, as llguidance tells them from text.

    Args:
        tokenizer: the fast tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._ids = {token.content: token_id for token_id, token in added.items() if _is_special(token)}
        self._any = re.compile(f"({any_of(self._ids) or '(?!)'})")

    def literal(self, text: str) -> str:
        """Exactly this text."""
        pieces = [piece for piece in self._any.split(text) if piece]
        return " ".join(self._piece(piece) for piece in pieces) or NOTHING

    def up_to(self, rule: str, end: str, pattern: str = ANY) -> str:
        """A rule for a text that follows a pattern (a regex as Lark has it), up to the first `end`, with it."""
        head, token, rest = ([*self._any.split(end, 1), "", ""])[:3]
        text = pattern + re.sub(r"([^\w\s<>=\"'])", r"\\\1", head, flags=re.ASCII).replace("\n", "\\n")
        if token:
            return f"{rule}: /{text}/ {self.literal(token + rest)}"
        return f"{rule}[lazy]: /{text}/"

    def reasoning(self, rule: str, answer_format: AnswerFormat | None, prefix: str) -> str:
        """A rule for the reasoning that the model may, or must, write before its answer.

        Args:
            rule: its name.
            answer_format: how the model writes reasoning; None: it does not.
            prefix: what the prompt has written of the answer.
        """
        tags = answer_format.reasoning_tags if answer_format else None
        if answer_format is None or tags is None:
            return f"{rule}: {NOTHING}"
        opening, closing = tags
        opened, closed = prefix.rfind(opening), prefix.rfind(closing)
        if closed > opened:
            return f"{rule}: {NOTHING}"
        body = f"{rule}_text {_BLANKS}"
        text = self.up_to(f"{rule}_text", closing)
        if opened >= 0:
            return f"{rule}: {body}\n{text}"
        begin = self.literal(opening)
        if answer_format.reasoning_first:
            begin = f"({begin} | {_BLANKS})"
        return f"{rule}: {begin} {body} | {NOTHING}\n{text}"

    def behind_reasoning(
        self, grammar: str, answer_format: AnswerFormat | None, prefix: str, *, instead: str = ""
    ) -> str:
        """A grammar for an answer, with what the model may think before it.

        Args:
            grammar: of a `Constraint`.
            answer_format, prefix: see `reasoning`.
            instead: rules with one called `calls`, for what the answer may be as well.
        """
        reasoning = self.reasoning("reasoning", answer_format, prefix)
        if reasoning == f"reasoning: {NOTHING}" and not instead:
            return grammar
        answer = "(@answer | calls)" if instead else "@answer"
        whole = {"lark_grammar": f"start: reasoning {answer}\n{reasoning}\n{instead}"}
        first, *others = json.loads(grammar)["grammars"]
        return json.dumps({"grammars": [whole, {**first, "name": "answer"}, *others]})

    def _piece(self, text: str) -> str:
        token_id = self._ids.get(text)
        return json.dumps(text, ensure_ascii=False) if token_id is None else f"<[{token_id}]>"


def json_rule(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """A value of a JSON schema. `lenient`: what the library does not know in it does not count."""
    return f"%json {json.dumps(json_schema(schema, lenient=lenient))}"


def _is_special(token: Any) -> bool:
    """As llguidance has it: also added tokens that look like tags."""
    return bool(token.special or _TAG.fullmatch(token.content))
