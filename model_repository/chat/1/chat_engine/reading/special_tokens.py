"""Text that looks like a special token stays text: only the chat template writes special tokens.

A conversation is rendered with marks inside everything that a caller wrote and a tokenizer would take for a special
token. What carries a mark is encoded as ordinary text, what the template wrote is encoded as before. Encoding goes
through one call for the whole prompt, because pieces behave otherwise at its beginning than further in.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import threading
from collections.abc import Iterable
from functools import cached_property

from tokenizers import Tokenizer

# Private characters, so that no template trims, splits or escapes what is put into a content for a moment.
_MARK, _ALIAS_BEGIN, _ALIAS_END = "\U000f0000", "\U000f0001", "\U000f0002"


class SpecialTokenGuard:
    """Tells special tokens of the template from those that a caller wrote.

    Args:
        backend: the model's tokenizer.
        more: added tokens that are not marked as special and are guarded all the same.
    """

    def __init__(self, backend: Tokenizer, more: Iterable[str] = ()) -> None:
        added = backend.get_added_tokens_decoder()
        more = frozenset(more)
        self._backend = backend
        self._tokens = [
            token.content
            for token in added.values()
            if token.content and not token.single_word and (token.special or token.content in more)
        ]
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._longest = max(map(len, self._tokens), default=0)
        self._beginnings = frozenset(token[:n] for token in self._tokens for n in range(1, len(token)))
        self._ends = frozenset(token[n:] for token in self._tokens for n in range(1, len(token)))
        self._begins = re.compile(f"(?={self._any.pattern})")
        self._mark = f"{_MARK}{secrets.randbelow(10**12)}{_MARK}"
        self._lock = threading.Lock()

    def mark(self, text: str) -> str:
        """The text of a caller with a mark in each special token written out in it.

        Also in what may become one together with its neighbour in the prompt: the end of one at the text's beginning,
        and the beginning of one at its end.
        """
        places = {found.start() + 1 for found in self._begins.finditer(text)}
        reach = range(1, min(len(text) + 1, self._longest))
        if any(text[:count] in self._ends for count in reach):
            places.add(1)
        places.update(len(text) - count + 1 for count in reach if text[-count:] in self._beginnings)
        cuts = [0, *sorted(places), len(text)]
        return self._mark.join(text[begin:end] for begin, end in itertools.pairwise(cuts))

    def unmark(self, text: str) -> str:
        """Without the marks."""
        return text.replace(self._mark, "")

    def encode(self, marked: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a rendered text; a special token with a mark in it is none."""
        pieces = marked.split(self._mark)
        text = "".join(pieces)
        marks, length = set(), 0
        for piece in pieces[:-1]:
            length += len(piece)
            marks.add(length - 1)
        with self._lock:
            tokenizer = self._renamed
        return tokenizer.encode_batch_fast([self._alias(text, marks)], add_special_tokens=add_special_tokens)[0].ids

    def _alias(self, text: str, marks: set[int]) -> str:
        """The text with the template's special tokens under their aliases."""
        parts, at, search = [], 0, 0
        while found := self._any.search(text, search):
            begin, end = found.span()
            if marks.isdisjoint(range(begin, end)):
                parts += [text[at:begin], self._aliases[found[0]]]
                at = search = end
            else:
                search = begin + 1
        return "".join([*parts, text[at:]])

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """By content, names that no caller can know."""
        secret = secrets.randbelow(10**12)
        return {content: f"{_ALIAS_BEGIN}{secret}-{number}{_ALIAS_END}" for number, content in enumerate(self._tokens)}

    @cached_property
    def _renamed(self) -> Tokenizer:
        """The tokenizer with the guarded tokens under their aliases, and the same ids.

        In the vocabulary, too: a Unigram model would find them there in any text.
        """
        description = json.loads(self._backend.to_str())
        for token in description["added_tokens"]:
            token["content"] = self._aliases.get(token["content"], token["content"])
        model = description["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, list):
            model["vocab"] = [[self._aliases.get(piece, piece), score] for piece, score in vocabulary]
        else:
            model["vocab"] = {self._aliases.get(piece, piece): token_id for piece, token_id in vocabulary.items()}
        if "unk_token" in model:
            model["unk_token"] = self._aliases.get(model["unk_token"], model["unk_token"])
        return Tokenizer.from_str(json.dumps(description, ensure_ascii=False))
