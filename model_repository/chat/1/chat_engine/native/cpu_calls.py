"""Calls of the functions compiled for CPUs: each takes one structure, in which tensors are pointers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

Function = Callable[[object], object]
"""Of a library: takes the address of its structure."""

Listener = Callable[[Function, ctypes.Structure, dict[str, Tensor]], None]

_listeners: list[Listener] = []


def function_of(library: ctypes.CDLL, name: str) -> Function:
    """`chat_engine_<name>`."""
    found = getattr(library, f"chat_engine_{name}")
    found.argtypes, found.restype = (ctypes.c_void_p,), None
    return found  # type: ignore[no-any-return] # of ctypes


def call(function: Function, told: ctypes.Structure, **tensors: Tensor) -> None:
    """Calls it with `told`, whose fields by these names become the addresses of tensors."""
    for name, tensor in tensors.items():
        setattr(told, name, tensor.data_ptr())
    for listener in _listeners:
        listener(function, told, tensors)
    function(ctypes.addressof(told))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tells of each call before it is made."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
