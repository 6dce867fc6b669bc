"""The frame around the NumPy twins: the oracle, the baseline, the explanation.

Selected like an instruction set, by the name ``numpy``: ``fastopt.set_isa("numpy")`` or ``FASTOPT_ISA=numpy``.
Each optimizer in ``optimizers/`` has a twin: its formula as plain NumPy expressions, with the same names and the
same operations in the same order, and so the same bits. This file is the twin of ``src_c/loops.h``, which puts the
same frame around the formulas in C. How 16-bit arrays are stored is in ``storage.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from fastopt.algorithm import Algorithm, Array

SUM_BLOCK = 4096
"""Sums are cut at multiples of so many elements: FASTOPT_SUM_BLOCK of src_c/fastopt.h."""

SUM_LANES = 16
"""Within a block, element i is added to lane i modulo this."""


def cbrt(x: Any) -> Any:
    """The cube root, for twins: that of ``src_c/roots.h``, whose bits no library's differ from.

    As NumPy's own functions do, it leaves arguments that say so to their ``__array_function__``.
    """
    if not isinstance(x, np.ndarray) and hasattr(x, "__array_function__"):
        return x.__array_function__(cbrt, (type(x),), (x,), {})
    bits_dtype, constant, iterations = _CUBE_ROOT[x.dtype.name]
    eighth = np.asarray(x * 0.125)
    bits = eighth.view(bits_dtype) >> 2
    bits = bits + (bits >> 2)
    bits = bits + (bits >> 4)
    bits = bits + (bits >> 8) + constant
    y = np.asarray(bits).view(x.dtype)
    for _ in range(iterations):
        cube = y * y * y
        y = y * ((cube + 2 * eighth) / (2 * cube + eighth))
    return np.where((x > 0) & (x < np.inf), 2 * y, x)


_CUBE_ROOT = {
    "float32": (np.uint32, np.uint32(709921077), 2),
    "float64": (np.uint64, np.uint64(0x2A9F7893782DA1CE), 3),
}
"""For each dtype that of its bits, the bits that a third of them lack, and how many iterations are enough."""


def update(
    algorithm: type[Algorithm],
    p: Array,
    grad: Array,
    states: Sequence[Array | None],
    scalars: Sequence[float],
    factors: Sequence[float] = (),
    decay_by: Callable[[Array, float], None] | None = None,
) -> tuple[Array, ...]:
    """One step on one array, in place. Returns the row's SUMS, for each an array shaped like ``p``.

    states: the row's STATE and OPTIONAL buffers, WORK and COLUMNS, None for one that is not in use. scalars: the row's
    SCALARS, then grad_scale, weight_decay, decay. factors: the row's FACTORS. decay_by: multiplies an array by a number,
    where that takes more than a product.
    """
    with np.errstate(all="ignore"):
        *own, grad_scale, weight_decay, decay = (p.dtype.type(value) for value in scalars)
        # what changes no bit is left out, as in a loop written by hand
        g = grad_scale * grad if grad_scale != 1 else grad
        if weight_decay != 0:
            g = g + weight_decay * p
        if decay_by is not None:
            decay_by(p, scalars[-1])
        elif decay != 1:
            p *= decay
        return algorithm.twin(p, g, *states, *own, *(p.dtype.type(value) for value in factors)) or ()


def with_l1(p: Array, grad: Array, factor: float, l1: float) -> Array:
    """factor * grad + l1 * sign(p): the twin of ``src_c/formulas/l1.h``."""
    number = p.dtype.type
    with np.errstate(all="ignore"):
        return number(factor) * grad + number(l1) * np.sign(p)


def sums(
    algorithm: type[Algorithm],
    p: Array,
    grad: Array,
    states: Sequence[Array | None],
    scalars: Sequence[float],
    factors: Sequence[float] = (),
) -> Array:
    """The row's SUMS: for each block of SUM_BLOCK elements, a line with a number for each sum.

    factors: the FACTORS that the sums are made with. Changes none of the arrays. Elements are numbered in the order in
    which ``p`` lies in memory.
    """
    copies = [None if state is None else state.copy(order="K") for state in states]
    found = update(algorithm, p.copy(order="K"), grad, copies, scalars, factors)
    order: Literal["C", "F"] = "C" if p.flags.c_contiguous else "F"
    return np.stack([block_sums(values.ravel(order)) for values in found], axis=1)


def block_sums(values: Array) -> Array:
    """The sums in float64 of each block of a flat array, in an order that no machine changes.

    A block's elements are added to its lanes in order, then the lanes in pairs: i and i + 8, i + 4, i + 2, i + 1.
    """
    blocks = -(-values.size // SUM_BLOCK)
    padded = np.zeros(blocks * SUM_BLOCK)
    padded[: values.size] = values
    with np.errstate(all="ignore"):
        return _added_by_lanes(padded.reshape(blocks, SUM_BLOCK))


def _added_by_lanes(lines: Array) -> Array:
    """The sum of each line of at most SUM_BLOCK elements."""
    count, size = lines.shape
    padded = lines if size % SUM_LANES == 0 else np.pad(lines, ((0, 0), (0, -size % SUM_LANES)))
    # the lanes lie side by side, so that NumPy adds whole rows, one after the other
    lanes = np.add.reduce(padded.reshape(count, padded.shape[1] // SUM_LANES, SUM_LANES), axis=1, initial=0.0)
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return np.asarray(lanes[:, 0])


def squares(grad: Array, grad_scale: float, strip_rows: int) -> tuple[Array, Array]:
    """The sums of the squares of a gradient times ``grad_scale`` over each row, and over each column of each matrix.

    Both have the gradient's axes, one of them of length 1. Columns are added up over strips of rows, row by row, and
    then strip by strip.
    """
    matrix_rows, elements = grad.shape[-2:]
    of_rows, of_columns = (*grad.shape[:-1], 1), (*grad.shape[:-2], 1, elements)
    with np.errstate(all="ignore"):
        scaled = (grad.dtype.type(grad_scale) * grad).reshape(math.prod(of_rows), elements)
        squared = np.multiply(scaled, scaled, dtype=np.float64)
        rows, columns = np.zeros(len(squared)), np.zeros((math.prod(of_columns[:-2]), elements))
        for begin in range(0, elements, SUM_BLOCK):
            rows += _added_by_lanes(squared[:, begin : begin + SUM_BLOCK])
        for strip in range(0, len(squared), strip_rows):
            end, row = min(strip + strip_rows, len(squared)), strip
            while row < end:
                matrix = row // matrix_rows
                part = squared[row : min(end, (matrix + 1) * matrix_rows)]
                columns[matrix] += np.add.accumulate(part, axis=0)[-1]
                row += len(part)
    return rows.reshape(of_rows), columns.reshape(of_columns)


def norms_over(array: Array, axes: tuple[int, ...]) -> Array:
    """The 2-norms over some axes, which keep the length 1: each with the bits of a tensor's norm, in C order."""
    kept = [k for k in range(array.ndim) if k not in axes]
    shape = math.prod(array.shape[k] for k in kept), math.prod(array.shape[k] for k in axes)
    wide = array.transpose(*kept, *sorted(axes)).reshape(shape).astype(np.float64)
    with np.errstate(all="ignore"):
        largest = np.abs(wide).max(axis=1, initial=0.0)
        squares = np.zeros(len(wide))
        for begin in range(0, wide.shape[1], SUM_BLOCK):
            squares += _added_by_lanes(np.square(wide[:, begin : begin + SUM_BLOCK]))
        found = np.sqrt(squares)
        for unit in np.flatnonzero(~np.isfinite(squares) & np.isfinite(largest)):
            found[unit] = _norm(wide[unit], float(largest[unit]))
    return found.reshape([1 if k in axes else n for k, n in enumerate(array.shape)])


def total(blocks: Array) -> Array:
    """The blocks that `sums` returned, added in order: for each sum one number."""
    with np.errstate(all="ignore"):
        result = np.zeros(blocks.shape[1])
        for line in blocks:
            result += line
    return result


def norms(grad: Array, grad_scale: float, max_value: float | None, is_infinite: bool) -> tuple[float, float, bool]:
    """The norm of a gradient times ``grad_scale``, the norm after clipping to ±max_value, and whether all is finite.

    grad: flat, in the parameter's memory order, float32 or float64 or of 16 bits.
    """
    wide = grad.astype(np.float64) if grad.dtype != np.float64 else grad
    arithmetic: Any = np.float64 if grad.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        largest = float(np.abs(wide).max(initial=0.0))
        is_finite = bool(np.isfinite(largest))
        limited = wide
        if max_value is not None:
            scaled = arithmetic(grad_scale) * wide.astype(arithmetic)
            limited = np.clip(scaled, -arithmetic(max_value), arithmetic(max_value)).astype(np.float64)
        if is_infinite:
            raw = largest * abs(grad_scale)
            return raw, raw if max_value is None or not raw > max_value else max_value, is_finite
        raw = _norm(wide, largest) * abs(grad_scale)
        clipped = raw if max_value is None else _norm(limited, float(np.abs(limited).max(initial=0.0)))
        return raw, clipped, is_finite


def _norm(values: Array, largest: float) -> float:
    """The root of the sum of squares, taken again of smaller values where it overflows."""
    found = float(total(block_sums(values * values)[:, None])[0])
    if np.isfinite(found) or not np.isfinite(largest):
        return float(np.sqrt(found))
    shrink = float(np.ldexp(1.0, -int(np.frexp(largest)[1])))
    small = values * shrink
    return float(np.sqrt(total(block_sums(small * small)[:, None])[0])) / shrink
