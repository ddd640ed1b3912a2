"""One or several texts, or one or several lists of token ids: `prompt` of completions, `input` of embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter

from chat_gateway.schemas.fields import TokenIds, by_form

Texts = Annotated[list[str], Field(min_length=1)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1)]

_TEXT: Final[TypeAdapter[str]] = TypeAdapter(str)
_LISTS: Final[dict[type, TypeAdapter[Any]]] = {
    str: TypeAdapter(Texts),
    int: TypeAdapter(TokenIds),
    list: TypeAdapter(TokenLists),
}


def _form(value: object) -> TypeAdapter[Any] | None:
    """A list is what its first item is."""
    if isinstance(value, str):
        return _TEXT
    return _LISTS.get(type(value[0])) if isinstance(value, list) and value else None


Inputs = Annotated[
    str | Texts | TokenIds | TokenLists,
    by_form(_form, "a string, a list of strings, a list of token ids or a list of such lists; lists must not be empty"),
]


def each(inputs: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    """The inputs one by one, a single one too."""
    if isinstance(inputs, str):
        return [inputs]
    return [inputs] if isinstance(inputs[0], int) else inputs
