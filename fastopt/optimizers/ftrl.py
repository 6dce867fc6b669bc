from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import InitialValue, NonNegative, Positive, Seed, StateDtype


class FTRL(Optimizer):
    """FTRL-Proximal: Adagrad's steps with an l1 penalty that makes parameters exactly 0. For sparse linear models.

    ::

        p = p * (1 - lr * weight_decay)
        s' = s + g^2
        z = z + g + 2 * l2_shrinkage * p - (sqrt(s') - sqrt(s)) / lr * p;  s = s'
        p = 0                                                            |z| <= l1
        p = (sign(z) * l1 - z) / (sqrt(s) / lr + beta / lr + 2 * l2)     else

    p follows from z: what it was before the first step plays a part only by way of z, and without penalties the
    first step takes away much of it. Keras and TensorFlow compute the same, under the names
    ``l1_regularization_strength``, ``l2_regularization_strength`` and ``l2_shrinkage_regularization_strength``;
    their ``learning_rate_power`` is always -0.5 here. torch and optax have none.

    Source: McMahan et al. 2013, Ad click prediction: a view from the trenches (KDD). State: ``accumulator``,
    ``linear``.

    Options:
    lr: the learning rate; above 0, because p is worked out by dividing by it (Keras').
    initial_accumulator_value: the first value of s, taken when the optimizer is made; with 0, elements whose
        gradients have all been 0 become NaN, unless beta or l2 is above 0 (Keras').
    l1: the penalty on sizes (Keras' l1_regularization_strength).
    l2: the penalty on squares (Keras' l2_regularization_strength).
    l2_shrinkage: a penalty on squares that acts on z alone and not on s (Keras'
        l2_shrinkage_regularization_strength).
    beta: added to the root of s (Keras', the paper's).
    weight_decay: p loses this part of itself, times lr, before the update (Keras').
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: Positive = 1e-3,
        initial_accumulator_value: InitialValue = 0.1,
        l1: NonNegative = 0.0,
        l2: NonNegative = 0.0,
        l2_shrinkage: NonNegative = 0.0,
        beta: NonNegative = 0.0,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "ftrl"
        states = {"s": "accumulator", "z": "linear"}
        adds_l1 = False

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0 - h["lr"] * h["weight_decay"]

        @staticmethod
        def initial_states(h: Hyper) -> dict[str, float]:
            return {"s": h["initial_accumulator_value"]}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return 2.0 * h["l2_shrinkage"], 1.0 / h["lr"], h["l1"], 2.0 * h["l2"] + h["beta"] / h["lr"]

        @staticmethod
        def twin(
            p: Array, g: Array, s: Array, z: Array, shrinkage: Any, inverse_lr: Any, l1: Any, l2: Any
        ) -> None:
            before = np.sqrt(s)
            s += g * g
            root = np.sqrt(s)
            z += g + shrinkage * p - (root - before) * inverse_lr * p
            pull = np.minimum(l1 - z, 0) - np.minimum(l1 + z, 0)
            np.divide(pull, root * inverse_lr + l2, out=p)
