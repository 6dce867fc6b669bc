from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, InitialValue, NonNegative, Seed, StateDtype


class Yogi(Optimizer):
    """Yogi: Adam whose mean square moves by a part of the new square, not of their difference, so it falls slowly.

    ::

        m = beta1 * m + (1 - beta1) * g
        v = v - (1 - beta2) * sign(v - g^2) * g^2
        m^ = m / (1 - beta1^t);  v^ = v / (1 - beta2^t)
        p = p - lr * m^ / (sqrt(v^) + eps)

    m and v begin at ``initial_accumulator_value``. optax and pytorch_optimizer compute the same; in optax lr has
    no default, in pytorch_optimizer weight decay is decoupled by default. The paper has no bias correction.

    Source: Zaheer, Reddi, Sachan, Kale, Kumar 2018 (NeurIPS: Adaptive methods for nonconvex optimization). State:
    ``exp_avg``, ``exp_avg_sq``.

    Options:
    betas: beta1 and beta2: the weight of the old in m; 1 - beta2 is the part of the square (the paper's).
    eps: added to the root: 1e-3 limits the steps, and not only the division by 0 (the paper's).
    initial_accumulator_value: the first value of m and of v, taken when the optimizer is made (optax').
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-2,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Epsilon = 1e-3,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        initial_accumulator_value: InitialValue = 1e-6,
        decoupled_weight_decay: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "yogi"
        states = {"m": "exp_avg", "v": "exp_avg_sq"}

        @staticmethod
        def initial_states(h: Hyper) -> dict[str, float]:
            return {"m": h["initial_accumulator_value"], "v": h["initial_accumulator_value"]}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            step_size, correction2 = (
                h["lr"] / bias_correction(beta1, t),
                1.0 / math.sqrt(bias_correction(beta2, t)),
            )
            return beta1, 1.0 - beta1, 1.0 - beta2, correction2, h["eps"], step_size

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, v: Array,
            beta1: Any, one_minus_beta1: Any, one_minus_beta2: Any, correction2: Any, eps: Any, step_size: Any,
        ) -> None:  # fmt: skip
            m *= beta1
            m += one_minus_beta1 * g
            v -= np.sign(v - g * g) * (one_minus_beta2 * g * g)
            p -= step_size * (m / (np.sqrt(v) * correction2 + eps))
