"""Where in a request something is wrong, as OpenAI writes it: `messages[0].content`.

The models begin a sentence with the place, as `messages.0.content: must be ...` or `row 3: text: ...`, in their own
names of fields. Here is where those become the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

from triton_chat.errors import InvalidRequestError

E = TypeVar("E", bound=InvalidRequestError)

_PLACE: Final = re.compile(r"(?!error|internal|failed)([a-z_]\w*)((?:\.\w+|\[\d+\])*): ")
_ROW: Final = re.compile(r"^(?:row (\d+): )?(?:(text|token_ids): )?")
_NUMBER: Final = re.compile(r"\.(\d+)(?!\w)")


def split(sentence: str) -> tuple[str | None, str]:
    """The place that a sentence begins with, as OpenAI writes it, and the whole sentence with that place."""
    found = _PLACE.match(sentence)
    if found is None:
        return None, sentence
    place = found[1] + _NUMBER.sub(r"[\1]", found[2])
    return place, f"{place}: {sentence[found.end() :]}"


def renamed(error: E, names: Mapping[str, str]) -> E:
    """The same error in the caller's words: `names` are the model's names of fields, to the caller's."""
    found = _PLACE.match(str(error))
    if found is None:
        return error
    return type(error)(f"{names.get(found[1], found[1])}{found[2]}: {str(error)[found.end() :]}")


def in_input(error: E, *, is_list: bool) -> E:
    """An error of the model `embeddings`, which names rows and tensors, in the words of those who send `input`.

    Args:
        is_list: whether the input is a list, so that a place in it can be named.
    """
    found = _ROW.match(sentence := str(error))
    assert found is not None  # it matches nothing as well
    row, tensor = found.groups()
    if row is None and tensor is None:
        return error
    place = f"input[{row or 0}]" if is_list else "input"
    return type(error)(f"{place}: {sentence[found.end() :]}")
