"""Work of a CPU done again without Python: what CUDA graphs are on a GPU.

The work is done once and written down: torch's operations, and calls of the compiled functions, which C then makes one
after the other. What is made on the way gets a place in one piece of memory for as long as it is needed (liveness, as
compilers allot registers), so that nothing is allocated again.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from chat_engine.native.cpu_calls import Function, Listener, listening
from chat_engine.native.elementwise import Elementwise

aten = torch.ops.aten

_ALIGNED = 64  # bytes: a line of the caches
_ALLOCATIONS = {aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided}
# What comes of them depends on the numbers of a step: another time it has another shape, or Python takes another way.
_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_INDEXING = {aten.index, aten.index_put, aten.index_put_}  # only by what is true


class CannotRecordError(RuntimeError):
    """An operation of which something else may come when the numbers are others."""


@dataclass(frozen=True)
class _Operation:
    """One of torch's."""

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: list[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return _tensors((self.args, self.kwargs, self.made))

    @property
    def computes(self) -> bool:
        """Whether there are numbers after it that were not there before."""
        if self.function._schema.is_mutable:  # noqa: SLF001
            return True
        given = {_memory_of(tensor) for tensor in _tensors((self.args, self.kwargs))}
        return self.function.overloadpacket not in _ALLOCATIONS and any(_memory_of(t) not in given for t in self.made)


@dataclass(frozen=True)
class _Call:
    """A call of a compiled function, and the tensors by the names that its structure has for them."""

    function: Function
    told: ctypes.Structure
    by_name: dict[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return list(self.by_name.values())


class _Writer(TorchDispatchMode):  # type: ignore[no-untyped-call] # of torch
    """Writes down what is done; as the tensors stay, each has memory of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[_Operation | _Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves(made) if leaf is not None]
        seen = len(_tensors(leaves)) < len(leaves)  # a number, which Python sees
        if seen or (_DEPENDENT.intersection(func.tags) and not _by_place(func, args)):
            raise CannotRecordError(f"what comes of {func} depends on the numbers")
        self.steps.append(_Operation(func, args, kwargs, _tensors(made)))
        return made


class _CallOfC(ctypes.Structure):
    """Mirror of `Call` in `cpu/run.cpp`."""

    _fields_ = (("function", ctypes.c_void_p), ("told", ctypes.c_void_p))


class Recorder:
    """Makes recordings that share their memory: none of them runs beside another.

    Args:
        library: the compiled functions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._operations = Elementwise(library)
        self._run = library.chat_engine_run
        self._run.argtypes, self._run.restype = (ctypes.c_void_p, ctypes.c_int64), None
        self._memory = torch.empty(0, dtype=torch.uint8)

    @torch.inference_mode()
    def __call__(self, work: Callable[[], object]) -> Callable[[], None]:
        """Does the work, and gives what does it again, over the same tensors of others.

        Raises CannotRecordError.
        """
        writer = _Writer()
        with writer, listening(_writing(writer.steps)):
            work()
        places, size = _places(writer.steps)
        if len(self._memory) < size:  # recordings before this one keep theirs
            self._memory = torch.empty(size, dtype=torch.uint8)
        place = functools.partial(_placed, places=places, memory=self._memory)
        program: list[Callable[[], object]] = []
        calls: list[_Call] = []
        for step in writer.steps:
            if isinstance(step, _Operation) and not step.computes:
                continue
            again = self._again(step, place)
            if isinstance(again, _Call):
                calls.append(again)
                continue
            program += [*self._in_one(calls), again]
            calls = []
        program += self._in_one(calls)

        @torch.inference_mode()
        def run() -> None:
            for part in program:
                part()

        return run

    def _again(self, step: _Operation | _Call, place: Callable[[Tensor], Tensor]) -> _Call | Callable[[], object]:
        """The same over tensors in their places."""
        if isinstance(step, _Call):
            tensors = {name: place(tensor) for name, tensor in step.by_name.items()}
            for name, tensor in tensors.items():
                setattr(step.told, name, tensor.data_ptr())
            return _Call(step.function, step.told, tensors)
        args, kwargs, made = (
            tree_map(lambda leaf: place(leaf) if isinstance(leaf, Tensor) else leaf, part)
            for part in (step.args, step.kwargs, step.made)
        )
        if step.function == aten.add.Tensor and not kwargs and _alike(*args, *made):
            calls: list[_Operation | _Call] = []
            with listening(_writing(calls)):
                self._operations.add(*args, *made)
            return calls[0]  # type: ignore[return-value] # it is a call
        if step.function._schema.is_mutable:  # noqa: SLF001
            return functools.partial(step.function, *args, **kwargs)
        variant = _out_variant(step.function)
        if variant is not None:
            function, names = variant
            return functools.partial(function, *args, **kwargs, **dict(zip(names, made, strict=True)))

        def copy() -> None:
            for to, result in zip(made, _tensors(step.function(*args, **kwargs)), strict=True):
                to.copy_(result)

        return copy

    def _in_one(self, calls: list[_Call]) -> list[Callable[[], object]]:
        """Calls of C one after the other, by one."""
        if not calls:
            return []
        told = (_CallOfC * len(calls))()
        for each, call in zip(told, calls, strict=True):
            each.function, each.told = ctypes.cast(call.function, ctypes.c_void_p), ctypes.addressof(call.told)  # type: ignore[arg-type] # a function of C

        def run(kept: Sequence[_Call] = tuple(calls)) -> None:  # noqa: ARG001
            self._run(told, len(told))

        return [run]


def _writing(steps: list[_Operation | _Call]) -> Listener:
    return lambda function, told, by_name: steps.append(
        _Call(function, type(told).from_buffer_copy(told), dict(by_name))
    )


def _places(steps: Sequence[_Operation | _Call]) -> tuple[dict[int, int], int]:
    """Where in one piece of memory that of each tensor lies which the steps make, and how long that piece is."""
    needed: dict[int, list[int]] = {}  # by memory, its first and last step
    sizes: dict[int, int] = {}
    outside: set[int] = set()
    for number, step in enumerate(steps):
        given = _tensors((step.args, step.kwargs)) if isinstance(step, _Operation) else step.tensors
        outside.update(memory for tensor in given if (memory := _memory_of(tensor)) not in needed)
        for tensor in step.tensors:
            memory, size = _memory_of(tensor), tensor.untyped_storage().nbytes()
            if memory not in outside and size:
                sizes[memory] = size
                needed.setdefault(memory, [number, number])[1] = number
    places: dict[int, int] = {}
    live: list[tuple[int, int, int]] = []  # begin, end, last step
    most = 0
    for memory, (first, last) in needed.items():  # by their first step
        live = sorted(part for part in live if part[2] >= first)
        begin = 0
        length = -(-sizes[memory] // _ALIGNED) * _ALIGNED
        for other, end, _ in live:
            if begin + length <= other:
                break
            begin = max(begin, end)
        places[memory] = begin
        live.append((begin, begin + length, last))
        most = max(most, begin + length)
    return places, most


def _placed(tensor: Tensor, places: dict[int, int], memory: Tensor) -> Tensor:
    begin = places.get(_memory_of(tensor)) if tensor.layout == torch.strided else None
    if begin is None:
        return tensor
    offset = begin // tensor.element_size() + tensor.storage_offset()
    return tensor.new_empty(0).set_(memory.untyped_storage(), offset, tensor.size(), tensor.stride())


def _tensors(tree: object) -> list[Tensor]:
    """Those that have a place in memory; weights that oneDNN has packed have none that anyone could see."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def _memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _by_place(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether it takes numbers by their places, which is always as many."""
    return function.overloadpacket in _INDEXING and not any(
        tensor.dtype in (torch.bool, torch.uint8) for tensor in _tensors(args[1])
    )


def _alike(*tensors: Any) -> bool:
    """Whether all are tensors of one shape, and of a type that the compiled functions know."""
    if not all(isinstance(tensor, Tensor) and tensor.is_contiguous() for tensor in tensors):
        return False
    kinds = {(tensor.shape, tensor.dtype) for tensor in tensors}
    return len(kinds) == 1 and tensors[0].dtype in (torch.float32, torch.bfloat16)


@functools.cache
def _out_variant(function: OpOverload) -> tuple[OpOverload, list[str]] | None:
    """What writes the same to tensors that are there, and the names of the arguments that take them."""
    wanted = [(argument.name, str(argument.type)) for argument in function._schema.arguments]  # noqa: SLF001
    for name in function.overloadpacket.overloads():
        other: OpOverload = getattr(function.overloadpacket, name)
        arguments = other._schema.arguments  # noqa: SLF001
        given = [(argument.name, str(argument.type)) for argument in arguments if not argument.is_out]
        results = [argument.name for argument in arguments if argument.is_out]
        if results and given == wanted:
            return other, results
    return None
