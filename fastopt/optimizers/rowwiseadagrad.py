from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import InitialValue, NonNegative, Seed, StateDtype


class RowWiseAdagrad(Optimizer):
    """Row-wise Adagrad: a step size for every row of a matrix, from the mean of its squared gradients.

    ::

        s = s + mean of g^2 over the row                                   s: one number a row
        p = p - lr * g / (sqrt(s) + eps)

    For embeddings, matrices in C order with two axes, mostly by `update_rows`: the state of a row of 64 numbers takes
    as much memory as two of them. FBGEMM, and so TorchRec, computes this (``EXACT_ROWWISE_ADAGRAD``), with s in
    float32. torch, Keras and optax do not have it.

    Source: Mudigere and others 2022, arXiv:2104.05158, section 4.1.2. State: ``sum``, of shape (rows,).

    Options:
    eps: added to the root, against a division by 0 (FBGEMM's).
    weight_decay: the part of p that is added to g before all else (FBGEMM's weight_decay with its mode L2).
    initial_accumulator_value: the first value of s, taken when the optimizer is made (torch's Adagrad).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-2,
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        initial_accumulator_value: InitialValue = 0.0,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "rowwiseadagrad"
        states = {"s": "sum"}

        @staticmethod
        def check_shape(shape: tuple[int, ...]) -> str | None:
            if len(shape) == 2:
                return None
            return f"RowWiseAdagrad takes parameters with two axes, this has shape {shape}; give it to Adagrad"

        @staticmethod
        def vectors(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
            return {"s": shape[:1]}

        @staticmethod
        def initial_states(h: Hyper) -> dict[str, float]:
            return {"s": h["initial_accumulator_value"]}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return ()

        @staticmethod
        def prepare_rows(h: Hyper, t: int, sums: dict[str, Any], vectors: dict[str, Array]) -> tuple[Any, ...]:
            s = vectors["s"]
            s += sums["gg"] / max(sums["elements"], 1.0)
            return (h["lr"] / (np.sqrt(s) + h["eps"]),)

        @staticmethod
        def twin(p: Array, g: Array, rate: Any) -> tuple[Array]:
            gg = np.multiply(g, g, dtype=np.float64)
            p -= rate * g
            return (gg,)
