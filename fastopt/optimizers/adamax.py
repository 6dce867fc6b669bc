from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, NonNegative, Seed, StateDtype


class Adamax(Optimizer):
    """Adamax: Adam with a fading maximum of the gradients' sizes in place of the root of a mean square.

    ::

        m = beta1 * m + (1 - beta1) * g
        u = max(beta2 * u, |g| + eps)
        p = p - lr / (1 - beta1^t) * m / u

    torch and optax compute this; in optax lr has no default. Keras and MLX leave eps out of the maximum and divide
    by u + eps: that is ``eps_in_max=False``, with Keras' defaults ``lr=1e-3, eps=1e-7``. MLX does not divide by
    1 - beta1^t.

    Source: Kingma, Ba 2014, arXiv:1412.6980, section 7.1. State: ``exp_avg``, ``exp_inf``.

    Options:
    betas: beta1 and beta2, the weight of the old in m and the fading of the maximum (torch's).
    eps: added to the size of a gradient, against a division by 0 (torch's).
    eps_in_max: False: u = max(beta2 * u, |g|), and m is divided by u + eps (Keras', MLX's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 2e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        eps_in_max: bool = True,
        decoupled_weight_decay: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "adamax"
        states = {"m": "exp_avg", "u": "exp_inf"}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            inside, outside = (h["eps"], 0.0) if h["eps_in_max"] else (0.0, h["eps"])
            return beta1, 1.0 - beta1, beta2, inside, outside, h["lr"] / bias_correction(beta1, t)

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, u: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, eps_inside: Any, eps: Any, step_size: Any,
        ) -> None:  # fmt: skip
            m *= beta1
            m += one_minus_beta1 * g
            size = np.abs(g) + eps_inside
            u *= beta2
            np.maximum(size, u, out=u)
            p -= step_size * (m / (u + eps))
