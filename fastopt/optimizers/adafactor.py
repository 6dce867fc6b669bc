from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper, power
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Interval, NonNegative, Number, Seed, StateDtype


class Adafactor(Optimizer):
    """Adafactor: Adam's second moments in the memory of a row and a column; steps as long as the parameter is.

    ::

        w = t^beta2_decay;  eps1, eps2 = eps
        row = row + w * (mean of g^2 over each row - row)
        column = column + w * (mean of g^2 over each column - column)
        v = row * column / max(mean of row, eps1)                          with one axis: v = v + w * (g^2 - v)
        u = g / sqrt(max(v, eps1^2))
        rate = max(eps2, rms of p) * min(lr, 1 / sqrt(t)) / max(1, rms of u / d)
        p = p * (1 - lr * weight_decay) - rate * u

    Rows and columns are those of the last two axes; parameters with two axes and more must be in C order. So the state
    of a matrix of 4,096 x 4,096 takes 64 KiB, where Adam's takes 128 MiB in float32. There is no momentum. torch
    computes this. Keras adds its eps_1 to g^2 inside the means, and optax factors the two longest axes, from 128
    numbers on, and has no 1 / sqrt(t).

    Source: Shazeer and Stern 2018, arXiv:1804.04235. State: ``row_var`` and ``col_var``, or with one axis or none
    ``variance``.

    Options:
    lr: the most that a step is long, in units of the root mean square of p (torch's).
    beta2_decay: the exponent of w, at most 0; the weight of the new falls with it (torch's; the paper's -0.8).
    eps: eps1, below whose square no second moment falls; None: the float's epsilon, 1.2e-7 in float32 and 16 bits,
        2.2e-16 in float64. And eps2, the least root mean square that p is taken to have (torch's).
    d: the most that the root mean square of u may be, at least 1 (torch's).
    weight_decay: p loses this part of itself, times lr, before the update (torch's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-2,
        beta2_decay: Annotated[Number, Interval(-np.inf, 0, "(]")] = -0.8,
        eps: tuple[NonNegative | None, NonNegative] = (None, 1e-3),
        d: Annotated[Number, Interval(1)] = 1.0,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "adafactor"
        states = {"v": "variance", "row": "row_var", "column": "col_var"}

        @staticmethod
        def vectors(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
            if len(shape) < 2:
                return {}
            return {"row": (*shape[:-1], 1), "column": (*shape[:-2], 1, shape[-1])}

        @staticmethod
        def optional_by_shape(shape: tuple[int, ...]) -> set[str]:
            return {"v"} if len(shape) < 2 else set()

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            eps1 = h["eps"][0]
            return (
                power(float(t), h["beta2_decay"]),
                -1.0 if eps1 is None else eps1,
                1.0 - h["lr"] * h["weight_decay"],
            )

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            return 1.0, rate_of(h, t, sums["pp"], sums["uu"], sums["elements"])

        @staticmethod
        def first_row_factors(
            h: Hyper, t: int, rows: Array, columns: Array, vectors: dict[str, Array], work: dict[str, Array]
        ) -> tuple[Any, ...]:
            row, column, eps1 = vectors["row"], vectors["column"], h["eps"][0]
            weight = power(float(t), h["beta2_decay"])
            row += weight * (rows / max(columns.shape[-1], 1) - row)
            column += weight * (columns / max(rows.shape[-2], 1) - column)
            work["column"][...] = column
            mean = added_up(row, axis=-2) / max(rows.shape[-2], 1)
            return row / np.maximum(mean, np.finfo(work["column"].dtype).eps if eps1 is None else eps1), 1.0

        @staticmethod
        def prepare_rows(h: Hyper, t: int, sums: dict[str, Any], vectors: dict[str, Array]) -> tuple[Any, ...]:
            pp, uu = (added_up(sums[name], axis=0) for name in ("pp", "uu"))
            return None, rate_of(h, t, pp, uu, sums["elements"] * len(sums["pp"]))

        @staticmethod
        def twin(
            p: Array, g: Array, v: Array | None, column: Array | None,
            weight: Any, eps: Any, keep: Any, scale: Any, rate: Any,
        ) -> tuple[Array, Array]:  # fmt: skip
            least = np.finfo(eps.dtype).eps if eps < 0 else eps
            if v is not None:
                v += weight * (g * g - v)
            moment = scale * column if v is None else v
            u = g / np.sqrt(np.where(moment < least * least, least * least, moment))
            pp, uu = np.multiply(p, p, dtype=np.float64), np.multiply(u, u, dtype=np.float64)
            p *= keep
            p -= rate * u
            return pp, uu


def rate_of(h: Hyper, t: Any, pp: Any, uu: Any, elements: Any) -> Any:
    """The length of a step: as long as the parameter is, less where the gradient is much larger than it was."""
    elements = np.maximum(elements, 1.0)
    length = np.maximum(h["eps"][1], np.sqrt(pp / elements)) * np.minimum(h["lr"], 1.0 / np.sqrt(t))
    return length / np.maximum(1.0, np.sqrt(uu / elements) / h["d"])


def added_up(values: Array, axis: int) -> Array:
    """The sum along an axis, which stays, with the length 1; added up in order, for the same bits everywhere."""
    if not values.shape[axis]:
        return values.sum(axis=axis, keepdims=True)
    return np.add.accumulate(values, axis=axis).take([-1], axis)
