"""Which adapter a request names, if any."""

from __future__ import annotations

from collections.abc import Collection

from chat_engine.errors import InvalidArgumentError, UnknownModelError
from chat_engine.reading.checks import decode, show

FIELD = "adapter"
_LISTED = 20


def read_adapter(tensor: bytes | None, scalar: object, known: Collection[str]) -> str | None:
    """The name of one of `known`; None where none is given, or an empty name, which stands for the model itself.

    Args:
        tensor: the input; it wins over the scalar.
        scalar: the request parameter of the same name.
        known: the adapters of this model.

    Raises UnknownModelError, or InvalidArgumentError for what is no name at all.
    """
    name = decode(FIELD, tensor) if tensor is not None else scalar
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise InvalidArgumentError(f"must be the name of an adapter (got {show(name)})", field=FIELD)
    if name not in known:
        raise UnknownModelError(f"there is no adapter {show(name)}; {_what_there_is(known)}", field=FIELD)
    return name


def _what_there_is(known: Collection[str]) -> str:
    if not known:
        return "this model has none, so leave it out"
    names = sorted(known)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"there {'is' if len(names) == 1 else 'are'} {', '.join(names[:_LISTED])}{more}"
