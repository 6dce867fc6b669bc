"""How arrays are stored that NumPy alone does not compute with: the twin of ``src_c/storage.h``.

Why bfloat16 is rounded at random, and by which random bits, stands there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastopt import reference
from fastopt.algorithm import Algorithm, Array


def storage_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name; NumPy has no bfloat16 of its own."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError('bfloat16 arrays need ml_dtypes; pip install "fastopt[bfloat16]"') from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def update(
    algorithm: type[Algorithm],
    p: Array,
    grad: Array,
    states: Sequence[Array | None],
    scalars: Sequence[float],
    random_key: int,
    first_element: int,
    factors: Sequence[float] = (),
) -> None:
    """`reference.update` of arrays however they are stored.

    random_key: of the random bits that round what is stored as bfloat16. first_element: the number of the array's
    element 0, counted through all parameters.
    """
    wide = [None if array is None else widened(array) for array in states]
    reference.update(algorithm, wide_p := widened(p), widened(grad), wide, scalars, factors)
    random = random_bits(random_key, first_element, p)
    with np.errstate(over="ignore"):  # the sums and products of whole numbers, where NumPy has scalars of them
        for array, value in zip((p, *states), (wide_p, *wide), strict=True):
            if array is not None and value is not None and value is not array:
                store(array, value, next(random))


def sums(
    algorithm: type[Algorithm],
    p: Array,
    grad: Array,
    states: Sequence[Array | None],
    scalars: Sequence[float],
    n_factors: int = 0,
) -> Array:
    """`reference.sums` of arrays however they are stored."""
    wide = [None if array is None else widened(array) for array in states]
    return reference.sums(algorithm, widened(p), widened(grad), wide, scalars, n_factors)


def widened(array: Array) -> Array:
    """The array in the dtype of the arithmetic; itself if it is of that."""
    if array.dtype == np.float16:
        return np.asarray(array.astype(np.float32))
    if array.dtype.kind == "f":
        return array
    bits = array.view(np.uint16).astype(np.uint32)
    return np.left_shift(bits, 16, out=bits).view(np.float32)


def store(array: Array, value: Array, random: Array) -> None:
    """Rounds to bfloat16: up with the probability by which the value lies above its lower neighbour."""
    bits = np.where(np.isnan(value), np.uint32(0x7FC00000), value.view(np.uint32) + random)
    array.view(np.uint16)[...] = bits >> np.uint32(16)


def random_bits(random_key: int, first_element: int, p: Array) -> Iterator[Array]:
    """For each 16-bit buffer of ``p``'s shape 16 random bits an element, numbered as elements lie in memory."""
    number: Array = np.arange(first_element, first_element + p.size, dtype=np.uint64).astype(np.uint32)
    number = number.reshape(p.shape, order="C" if p.flags.c_contiguous else "F")
    start = (np.uint32(random_key & 0xFFFFFFFF) + number * np.uint32(0x9E3779B9)) ^ np.uint32(random_key >> 32)
    while True:
        x = (start ^ start >> np.uint32(16)) * np.uint32(0x7FEB352D)
        x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
        yield (x ^ x >> np.uint32(16)) & np.uint32(0xFFFF)
        yield x >> np.uint32(16)
        start = start + np.uint32(0x85EBCA6B)


def clipped(grad: Array, scale: float, limit: float) -> Array:
    """A gradient in the dtype of the arithmetic, times ``scale``, clipped to ±limit."""
    wide = widened(grad)
    with np.errstate(all="ignore"):
        number = wide.dtype.type
        return np.clip(number(scale) * wide, -number(limit), number(limit))


def clip_in_place(grad: Array, factor: float, limit: float) -> None:
    """A gradient times ``factor``, clipped to ±limit; 16 bits are rounded to the nearest even."""
    with np.errstate(all="ignore"):
        grad[...] = clipped(grad, factor, limit).astype(grad.dtype)
