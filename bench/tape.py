"""NumPy with preallocated ``out=``, derived from the twin: its ufuncs, recorded and replayed.

So nobody writes the formulas a second time. A replay allocates nothing: each ufunc writes into a
buffer whose old content nobody reads any more, its own input's where it can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Tape: TypeAlias = list[tuple[np.ufunc, tuple[Any, ...], Any]]
"""Ufuncs, their inputs, and where the result goes."""


class Recorded(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for an array, or for a temporary that has none yet, and records what is done to it."""

    def __init__(self, tape: Tape, array: Array | None = None) -> None:
        self.tape = tape
        self.array = array

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] = (), **options: Any
    ) -> Recorded:
        if method != "__call__" or options:
            raise TypeError(f"{ufunc.__name__}: only plain calls are recorded")
        result = out[0] if out else Recorded(self.tape)
        self.tape.append((ufunc, inputs, result))
        return result

    def __bool__(self) -> bool:
        raise TypeError("a tape cannot branch on the elements of an array")

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError("only ufuncs can be recorded")


def record(
    function: Callable[[Sequence[Any], Sequence[Array]], None],
    arrays: Sequence[Array | None],
    scalars: Sequence[Array],
    buffers: dict[tuple[int, ...], list[Array]],
) -> Tape:
    """What ``function(arrays, scalars)`` does to its arrays, for `replay`.

    scalars: 0-d arrays, so that their values may change from replay to replay; what the function
    branches on is fixed. buffers: temporaries by shape, shared by all tapes that are given the same
    dict, and made where they do not suffice.
    """
    symbolic: Tape = []
    function([a if a is None else Recorded(symbolic, a) for a in arrays], scalars)
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
    """Does once more, to the same arrays, what was recorded."""
    for ufunc, inputs, out in tape:
        ufunc(*inputs, out=out)
