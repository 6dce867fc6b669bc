from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, NonNegative, Seed, StateDtype


class RAdam(Optimizer):
    """Rectified Adam: no division by the root until enough gradients have been seen, then shorter steps at first.

    ::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        m^ = m / (1 - beta1^t)
        rho = rho_inf - 2 * t * beta2^t / (1 - beta2^t),  rho_inf = 2 / (1 - beta2) - 1
        r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        p = p - lr * r * m^ * sqrt(1 - beta2^t) / (sqrt(v) + eps)        rho > 5
        p = p - lr * m^                                                  else

    eps is added before the bias correction of v, as in torch's RAdam and unlike in torch's Adam. optax adds it
    after: that is ``eps_after_correction=True``. In thinc the counter runs twice as fast as the steps.

    Source: Liu, Jiang, He, Chen, Liu, Gao, Han 2019, arXiv:1908.03265. State: ``exp_avg``, ``exp_avg_sq``.

    Options:
    betas: beta1 and beta2, the weights of the old in m and in v (torch's).
    eps: added to the root, against a division by 0 (torch's).
    eps_after_correction: True: the divisor is sqrt(v / (1 - beta2^t)) + eps, as in Adam (optax's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        eps_after_correction: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "radam"
        states = {"m": "exp_avg", "v": "exp_avg_sq"}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            step_size, correction2, limit = h["lr"] / bias_correction(beta1, t), 1.0, -1.0
            if rectifier := rectification(beta2, t):
                step_size, limit = step_size * rectifier, math.inf
                if h["eps_after_correction"]:
                    correction2 = 1.0 / math.sqrt(bias_correction(beta2, t))
                else:
                    step_size *= math.sqrt(bias_correction(beta2, t))
            return beta1, 1.0 - beta1, beta2, 1.0 - beta2, correction2, h["eps"], limit, step_size

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, v: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any,
            correction2: Any, eps: Any, limit: Any, step_size: Any,
        ) -> None:  # fmt: skip
            m *= beta1
            m += one_minus_beta1 * g
            v *= beta2
            v += one_minus_beta2 * g * g
            root = np.sqrt(v) * correction2 + eps
            p -= step_size * (m / np.where(root > limit, 1, root))


def rectification(beta2: float, t: int) -> float:
    """The factor r of the step; 0 in the first steps, whose v is made of too few gradients."""
    correction2 = bias_correction(beta2, t)
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * t * (1.0 - correction2) / correction2
    if length <= 5.0:
        return 0.0
    return math.sqrt((length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length))
