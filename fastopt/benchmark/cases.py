"""Cases: one optimizer on arrays of given shapes, filled with fixed numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeAlias

import numpy as np

import fastopt
from fastopt.benchmark import internals
from fastopt.benchmark.internals import Array, Hyper, OptimizerClass

Shapes: TypeAlias = Sequence[tuple[int, ...]]

WORKLOADS: dict[str, Shapes] = {
    "1 x 64": [(64,)],
    "1 x 1,000": [(1000,)],
    "1,000 x 64": [(64,)] * 1000,
    "MLP 784-200-10": [(784, 200), (200,), (200, 10), (10,)],
    **{f"1 x 2^{k}": [(2**k,)] for k in (16, 20, 24, 26)},
}
"""The shapes of the parameters, by a name: the number of arrays x the elements of each."""


@dataclass(frozen=True, eq=False)
class Case:
    """One optimizer on one workload."""

    cls: OptimizerClass
    options: Hyper
    """The options that differ from the defaults."""
    workload: str
    shapes: Shapes
    dtype: str = "float32"

    @property
    def label(self) -> str:
        return f"{self.cls.__name__} {' '.join(self.options)}".strip()

    @property
    def hyper(self) -> Hyper:
        return internals.hyper_of(self.cls, self.options)

    @property
    def elements(self) -> int:
        return sum(map(prod, self.shapes))

    @property
    def state_count(self) -> int:
        return len(internals.state_letters(self.cls, self.hyper))

    @property
    def bytes_moved(self) -> int:
        """The fewest possible: the gradient is read, parameter and states are read and written."""
        return self.elements * np.dtype(self.dtype).itemsize * (3 + 2 * self.state_count)

    def make(self, params: list[Array]) -> fastopt.Optimizer:
        return self.cls(params, **self.options)

    def arrays(self) -> list[Array]:
        """One array for each shape, not filled."""
        return [allocate(shape, self.dtype) for shape in self.shapes]

    def states(self, shape: tuple[int, ...], dtype: str) -> list[Array | None]:
        """The state buffers of one parameter with their first values, in the row's order; None if not in use."""
        buffers: list[Array | None] = []
        for value in internals.initial_states(self.cls, self.hyper).values():
            if value is None:
                buffers.append(None)
            else:
                array = allocate(shape, dtype)
                array[...] = value
                buffers.append(array)
        return buffers

    def with_states(self, params: list[Array], grads: list[Array]) -> list[list[Array | None]]:
        """For each parameter all arrays of its update: parameter, gradient, state buffers."""
        return [[p, g, *self.states(p.shape, self.dtype)] for p, g in zip(params, grads, strict=True)]

    def coefficients(self) -> Callable[[int], tuple[float, ...]]:
        """A function of the step, counted from 1, that returns the kernel's coefficients in the row's order."""
        return internals.coefficients_of(self.cls, self.hyper)


def allocate(shape: tuple[int, ...], dtype: str) -> Array:
    """An array that lies in memory as NumPy's usually do: at a multiple of 16 bytes and of no more."""
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    begin = (16 - memory.ctypes.data) % 64
    return memory[begin : begin + size].view(dtype).reshape(shape)


PERIOD = 2**16 + 1
"""The numbers in arrays repeat after this many, which shares no factor with the size of a page or a task."""


@lru_cache
def _two_periods(seed: int, dtype: str) -> Array:
    numbers = np.random.default_rng(seed).standard_normal(PERIOD).astype("float32").astype(dtype)
    return np.concatenate([numbers, numbers])


def pieces(arrays: Sequence[Array], seed: int, dtype: str) -> Iterator[tuple[Array, Array]]:
    """Views of the arrays, piece by piece, each with the normally distributed numbers to fill it with.

    Every number can be represented in float32, in any dtype, and none is subnormal.
    """
    at = 0
    for array in arrays:
        flat = array.reshape(-1)
        for begin in range(0, flat.size, PERIOD):
            piece = flat[begin : begin + PERIOD]
            yield piece, _two_periods(seed, dtype)[at : at + piece.size]
            at = (at + piece.size) % PERIOD


def fill(arrays: Sequence[Array], seed: int) -> None:
    """Fills the arrays with numbers that depend on the seed alone."""
    for piece, values in pieces(arrays, seed, arrays[0].dtype.name):
        piece[...] = values
