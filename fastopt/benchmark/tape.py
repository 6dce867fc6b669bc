"""Records the ufuncs (and np.where) that the NumPy twin calls, to replay them or to write them as one loop.

Benchmarks need no second copy of a formula this way. A replay allocates nothing: each ufunc writes into a
buffer whose old content is not read again, that of its own input where it can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt import reference

Array: TypeAlias = npt.NDArray[Any]
Tape: TypeAlias = list[tuple[Any, tuple[Any, ...], Any]]
"""For each call: the ufunc, its inputs, and its result."""


def where(condition: Array, yes: Any, no: Any, *, out: Array) -> None:
    """``np.where`` with ``out``, which may be one of the inputs; NumPy has none, so this allocates."""
    out[...] = np.where(condition, yes, no)


def cbrt(x: Array, *, out: Array) -> None:
    """The twins' cube root with ``out``; in a loop, whose bits may differ, it is ``np.cbrt``."""
    out[...] = reference.cbrt(x)


WITH_OUT = {np.where: where, reference.cbrt: cbrt}


class Recorded(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for an array, or for a temporary without memory yet, and records the ufuncs that it is passed to."""

    class dtype:
        """Converts no scalar: each has the dtype already, and is recorded as it is."""

        @staticmethod
        def type(value: Array) -> Array:
            return value

    def __init__(self, tape: Tape, array: Array | None = None) -> None:
        self.tape = tape
        self.array = array

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] = (), **options: Any
    ) -> Recorded:
        if method == "__call__" and options == {"dtype": np.float64}:
            return Recorded(self.tape)  # a number for a sum, on which no element of the update depends
        if method != "__call__" or options:
            raise TypeError(f"{ufunc.__name__}: only plain calls are recorded")
        result = out[0] if out else Recorded(self.tape)
        self.tape.append((ufunc, inputs, result))
        return result

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Recorded:
        if function not in WITH_OUT or options:
            raise TypeError(f"{function.__name__}: only ufuncs and a few other functions are recorded")
        result = Recorded(self.tape)
        self.tape.append((WITH_OUT[function], inputs, result))
        return result

    def __bool__(self) -> bool:
        raise TypeError("a tape cannot branch on the elements of an array")

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError("only ufuncs can be recorded")


def trace(
    function: Callable[[Sequence[Any], Sequence[Array]], None],
    arrays: Sequence[Array | None],
    scalars: Sequence[Array],
) -> Tape:
    """The ufuncs that ``function(arrays, scalars)`` calls, with `Recorded` objects in place of arrays."""
    tape: Tape = []
    function([a if a is None else Recorded(tape, a) for a in arrays], scalars)
    return tape


def record(
    function: Callable[[Sequence[Any], Sequence[Array]], None],
    arrays: Sequence[Array | None],
    scalars: Sequence[Array],
    buffers: dict[tuple[int, ...], list[Array]],
) -> Tape:
    """The ufuncs that ``function(arrays, scalars)`` calls, with memory for each result, for `replay`.

    scalars: 0-d arrays, so that their values may change from replay to replay; the branches that the
    function takes are fixed. buffers: temporaries by shape, shared by all tapes that are given the same
    dict; missing ones are added.
    """
    symbolic = trace(function, arrays, scalars)
    last_use = {id(x): at for at, (_, inputs, _) in enumerate(symbolic) for x in inputs}
    like = next(array for array in arrays if array is not None)
    spare = list(buffers.setdefault(like.shape, []))
    temporaries: set[int] = set()
    tape: Tape = []
    for at, (ufunc, inputs, result) in enumerate(symbolic):
        resolved = tuple(x.array if isinstance(x, Recorded) else x for x in inputs)
        # a temporary that is read for the last time gives its buffer to this very result
        for key in {id(x) for x in inputs} & temporaries:
            if last_use[key] == at:
                temporaries.remove(key)
                spare.append(next(x.array for x in inputs if id(x) == key))
        if result.array is None:
            if not spare:
                spare.append(np.empty_like(like))
                buffers[like.shape].append(spare[-1])
            result.array = spare.pop()
            temporaries.add(id(result))
        tape.append((ufunc, resolved, result.array))
    return tape


def replay(tape: Tape) -> None:
    """Calls the recorded ufuncs again, on the same arrays."""
    for ufunc, inputs, out in tape:
        ufunc(*inputs, out=out)


def as_loop(tape: Tape, arrays: Sequence[Array], scalars: Sequence[Array]) -> str:
    """The source of a function ``step(*arrays, *scalars)`` that does the same in one ``prange`` over elements."""
    parameters = [f"array{k}" for k in range(len(arrays))] + [f"s{k}" for k in range(len(scalars))]
    names = {id(scalar): f"s{k}" for k, scalar in enumerate(scalars)}
    place = {id(array): k for k, array in enumerate(arrays)}
    body = [f"x{k} = array{k}[i]" for k in range(len(arrays))]
    written = set()

    def name(value: Any) -> str:
        if isinstance(value, Recorded):
            k = place.get(id(value.array))
            return f"t{id(value)}" if k is None else f"x{k}"
        return names.get(id(value)) or repr(value)

    for ufunc, inputs, result in tape:
        body.append(f"{name(result)} = np.{ufunc.__name__}({', '.join(map(name, inputs))})")
        written |= {place[id(result.array)]} if id(result.array) in place else set()
    body += [f"array{k}[i] = x{k}" for k in sorted(written)]
    lines = "".join(f"        {line}\n" for line in body)
    return f"def step({', '.join(parameters)}):\n    for i in prange(array0.size):\n{lines}"
