"""How arrays are stored that NumPy alone does not compute with: the twin of ``src_c/storage.h``.

Why bfloat16 is rounded at random, and by which random bits, stands there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
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
    wide_p = widened(p)
    random = random_bits(random_key, first_element, p)
    decay_by = None
    with np.errstate(over="ignore"):  # the sums and products of whole numbers, where NumPy has scalars of them
        if wide_p is not p:
            stores = 1 + sum(array is not given for array, given in zip(wide, states, strict=True))
            bits = next(islice(random_bits(random_key, first_element, p), stores, None))
            decay_by = partial(decay, bits=bits)
        reference.update(algorithm, wide_p, widened(grad), wide, scalars, factors, decay_by)
        for array, value in zip((p, *states), (wide_p, *wide), strict=True):
            if array is not None and value is not None and value is not array:
                store(array, value, next(random))


def sums(
    algorithm: type[Algorithm],
    p: Array,
    grad: Array,
    states: Sequence[Array | None],
    scalars: Sequence[float],
    factors: Sequence[float] = (),
) -> Array:
    """`reference.sums` of arrays however they are stored."""
    wide = [None if array is None else widened(array) for array in states]
    return reference.sums(algorithm, widened(p), widened(grad), wide, scalars, factors)


def widened(array: Array) -> Array:
    """The array in the dtype of the arithmetic; itself if it is of that."""
    if array.dtype == np.float16:
        return np.asarray(array.astype(np.float32))
    if array.dtype.kind == "f":
        return array
    bits = array.view(np.uint16).astype(np.uint32)
    return np.left_shift(bits, 16, out=bits).view(np.float32)


def decay(p: Array, factor: float, *, bits: Array) -> None:
    """Multiplies bfloat16 numbers, widened, by a factor near 1, in place: right in the mean, below float32's last
    place too."""
    exponent = p.view(np.uint32) & np.uint32(0x7F800000)
    number, lost = np.float32, np.float32(1.0 - factor)
    unit = exponent.view(np.float32) * number(2.0**-39) * (bits.astype(np.float32) - number(32767.5))
    left = p - (lost * p + unit)
    p[...] = np.where((lost == 0) | (exponent == 0x7F800000), number(factor) * p, left)


def store(array: Array, value: Array, random: Array) -> None:
    """Rounds to bfloat16: up with the probability by which the value lies above its lower neighbour."""
    bits = np.where(np.isnan(value), np.uint32(0x7FC00000), value.view(np.uint32) + random)
    array.view(np.uint16)[...] = bits >> np.uint32(16)


def follow(
    update: Callable[[Array, Array, Any], None] | None,
    p: Array,
    array: Array,
    weight: float,
    writes_param: bool,
    random_key: int,
    first_element: int,
) -> None:
    """A row of auxiliary.def that follows the update of a parameter, in place; None: the parameter is copied."""
    wide = widened(p)
    with np.errstate(all="ignore"):
        if update is None:
            nearest(array, wide)
            return
        update(wide, array, wide.dtype.type(weight))
        if writes_param and wide is not p:
            store(p, wide, next(random_bits(random_key, first_element, p)))


def nearest(array: Array, value: Array) -> None:
    """Stores values that are rounded to the nearest, of two equally near to the even one."""
    if array.dtype.kind == "f":
        array[...] = value
        return
    if value.dtype == np.float64:  # the 38 bits behind the others only say whether there is anything
        bits, behind = value.view(np.uint64), np.uint64((1 << 38) - 1)
        bits = (bits & ~behind) | (((bits & behind) + behind) & (behind + np.uint64(1)))
        value = bits.view(np.float64).astype(np.float32)
    even = value.view(np.uint32)
    even = even + np.uint32(0x7FFF) + (even >> np.uint32(16) & np.uint32(1))
    array.view(np.uint16)[...] = np.where(np.isnan(value), np.uint32(0x7FC00000), even) >> np.uint32(16)


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


def with_l1(p: Array, grad: Array, factor: float, l1: float) -> Array:
    """`reference.with_l1` of arrays however they are stored."""
    return reference.with_l1(widened(p), widened(grad), factor, l1)


def clip_in_place(grad: Array, factor: float, limit: float) -> None:
    """A gradient times ``factor``, clipped to ±limit; 16 bits are rounded to the nearest even."""
    with np.errstate(all="ignore"):
        grad[...] = clipped(grad, factor, limit).astype(grad.dtype)
