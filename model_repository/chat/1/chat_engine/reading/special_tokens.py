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
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

# Private characters, so that no template trims, splits or escapes what is put into a content for a moment.
_MARK, _ALIAS_BEGIN, _ALIAS_END = "\U000f0000", "\U000f0001", "\U000f0002"
TAG = re.compile(r"[<\[|{]\S+[>\]|}]")
_WORD = re.compile(r"\w")
_KEPT, _KEPT_LENGTH = 8192, 256  # short texts whose places are known: callers send the same tools again and again
_LONGEST = 200  # characters of a token; a pattern grows as deep


class SpecialTokenGuard:
    """Tells special tokens of the template from those that a caller wrote.

    Guarded are the tokens that the tokenizer marks as special, and the `tags`. Not those that ordinary text may be made
    of: white space, single characters, and what the model itself merges, unless it looks like a tag.

    Args:
        backend: the model's tokenizer.
        tags: added tokens that are guarded although they are not marked as special.
    """

    def __init__(self, backend: Tokenizer, tags: Iterable[str] = ()) -> None:
        description = json.loads(backend.to_str())
        merges = [_pair(merge) for merge in description["model"].get("merges") or ()]
        added = backend.get_added_tokens_decoder().values()
        ordinary = {"".join(merge) for merge in merges}
        special = [t.content for t in added if t.special and _is_guarded(t.content, ordinary)]
        self._tokens = list(dict.fromkeys([*special, *(tag for tag in tags if _is_guarded(tag, ordinary))]))
        self._single_words = frozenset(token.content for token in added if token.single_word)
        self._any = re.compile(any_of(self._tokens) or r"(?!)")
        self._written = {True: _Words(special), False: _Words(self._tokens)}  # by whether only those marked as special
        self._inside = "\n".join(self._tokens)
        self._mark = f"{_MARK}{secrets.randbelow(10**12)}{_MARK}"
        self._escaped_marks = _escaped(self._mark)
        self._normalizer = backend.normalizer if any(token.normalized for token in added) else None
        normalized = [self._normalizer.normalize_str(word) for word in self._tokens] if self._normalizer else []
        self._any_normalized = re.compile(any_of(filter(None, normalized)) or r"(?!)")
        self._aliases = _aliases(self._tokens)
        self._renamed = _renamed(description, merges, self._aliases)

    def mark(self, text: str, *, only_special: bool = False, ends: bool = False) -> str:
        """The text of a caller with a mark in each special token written out in it.

        Also in what may become one together with its neighbour in the prompt: the end of one at the text's beginning,
        and the beginning of one at its end.

        Args:
            only_special: the tags are left alone.
            ends: marks at both ends too, if it is a part of a token and so may stand within one of the template.
        """
        places = self._written[only_special].places(text)
        cuts = [0, *sorted(places), len(text)]
        marked = self._mark.join(text[begin:end] for begin, end in itertools.pairwise(cuts))
        return f"{self._mark}{marked}{self._mark}" if ends and text in self._inside else marked

    def lurks(self, text: str) -> bool:
        """Whether a special token comes about where the tokenizer normalises the text, as from other letters."""
        return self._normalizer is not None and bool(self._any_normalized.search(self._normalizer.normalize_str(text)))

    def unescape(self, rendered: str) -> str:
        """With the marks as they were, where a template has written them in JSON of nothing but ASCII."""
        for escaped in self._escaped_marks:
            rendered = rendered.replace(escaped, self._mark)
        return rendered

    def unmark(self, text: str) -> str:
        """Without the marks."""
        return text.replace(self._mark, "")

    def encode(self, marked: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a rendered text; a special token with a mark in it, or at its border, is none."""
        pieces = marked.split(self._mark)
        text = "".join(pieces)
        marks, length = set(), 0
        for piece in pieces[:-1]:
            length += len(piece)
            marks.add(length)
        aliased = self._alias(text, marks)
        return self._renamed.encode_batch_fast([aliased], add_special_tokens=add_special_tokens)[0].ids

    def _alias(self, text: str, marks: set[int]) -> str:
        """The text with the template's special tokens under their aliases; `marks` are places between characters."""
        parts, at, search = [], 0, 0
        while found := self._any.search(text, search):
            begin, end = found.span()
            if marks.isdisjoint(range(begin + 1, end)) and self._stands_alone(found):
                parts += [text[at:begin], self._aliases[found[0]]]
                at = search = end
            else:
                search = begin + 1
        return "".join([*parts, text[at:]])

    def _stands_alone(self, found: re.Match[str]) -> bool:
        """Whether a token that must be a word of its own is one."""
        if found[0] not in self._single_words:
            return True
        begin, end = found.span()
        return not (_WORD.match(found.string[:begin][-1:]) or _WORD.match(found.string[end : end + 1]))


class _Words:
    """Finds where words begin in a text, and what may become one with what is before it or behind it."""

    def __init__(self, words: Sequence[str]) -> None:
        self._begins = re.compile(f"(?={any_of(words) or '(?!)'})")
        self._longest = max(map(len, words), default=0)
        self._beginnings = frozenset(word[:n] for word in words for n in range(1, len(word)))
        self._ends = frozenset(word[n:] for word in words for n in range(1, len(word)))

        self._known = lru_cache(_KEPT)(self._look)

    def places(self, text: str) -> frozenset[int]:
        """Places between characters, one within each of them."""
        return (self._known if len(text) <= _KEPT_LENGTH else self._look)(text)

    def _look(self, text: str) -> frozenset[int]:
        places = {found.start() + 1 for found in self._begins.finditer(text)}
        reach = range(1, min(len(text) + 1, self._longest))
        if any(text[:count] in self._ends for count in reach):
            places.add(1)
        return frozenset(places | {len(text) - count + 1 for count in reach if text[-count:] in self._beginnings})


def any_of(words: Iterable[str]) -> str:
    """A pattern for any of the words, the longest first, that looks at each character once (a trie)."""
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(word[:1], []).append(word[1:])
    is_end = groups.pop("", None) is not None
    branches = [re.escape(char) + any_of(rest) for char, rest in groups.items()]
    if not branches:
        return ""
    body = branches[0] if len(branches) == 1 and not is_end else f"(?:{'|'.join(branches)})"
    return body + ("?" if is_end else "")


def _escaped(mark: str) -> tuple[str, str]:
    """The mark in JSON of nothing but ASCII, and in such JSON within JSON; the longer one first."""
    once = json.dumps(mark)[1:-1]
    return json.dumps(once)[1:-1], once


def _is_guarded(content: str, ordinary: set[str]) -> bool:
    if len(content) < 2 or len(content) > _LONGEST or content.isspace():
        return False
    return content not in ordinary or bool(TAG.fullmatch(content))


def _aliases(tokens: Iterable[str]) -> dict[str, str]:
    """By content, names that no caller can know."""
    secret = secrets.randbelow(10**12)
    return {content: f"{_ALIAS_BEGIN}{secret}-{number}{_ALIAS_END}" for number, content in enumerate(tokens)}


def _pair(merge: str | list[str]) -> tuple[str, ...]:
    return tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)


def _renamed(description: dict[str, Any], merges: list[tuple[str, ...]], aliases: Mapping[str, str]) -> Tokenizer:
    """The tokenizer with the guarded tokens under their aliases, and the same ids.

    In the vocabulary, too: a Unigram model would find them there in any text, and merges would make them.
    """
    for token in description["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    model = description["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[aliases.get(piece, piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {aliases.get(piece, piece): token_id for piece, token_id in vocabulary.items()}
    if merges:
        model["merges"] = [m for m in merges if aliases.keys().isdisjoint((*m, "".join(m)))]
    if "unk_token" in model:
        model["unk_token"] = aliases.get(model["unk_token"], model["unk_token"])
    return Tokenizer.from_str(json.dumps(description, ensure_ascii=False))
