from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper, by_tensor
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, NonNegative, Seed, StateDtype


class NAdam(Optimizer):
    """NAdam: Adam with Nesterov's momentum, which looks ahead to the momentum of the next step.

    ::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2)
        n = (1 - mu_t) / (1 - mu_1 ... mu_t) * g + mu_(t+1) / (1 - mu_1 ... mu_(t+1)) * m
        p = p - lr * n / (sqrt(v / (1 - beta2^t)) + eps)

    torch computes this, but keeps the product of the mu in float32; here it is in float64. Keras' Nadam is
    ``momentum_decay=1``, with an eps of 1e-7. optax's ``nadam`` leaves mu at beta1, and so computes something else.

    Source: Dozat 2016, ICLR workshop. State: ``exp_avg``, ``exp_avg_sq``, and the number ``mu_product``.

    Options:
    betas: beta1 and beta2, the weights of the old in m and in v (torch's).
    eps: added to the root, against a division by 0 (torch's).
    momentum_decay: how soon mu grows from beta1 / 2 to beta1 (torch's, the paper's with 250 times the number).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 2e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
        momentum_decay: NonNegative = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "nadam"
        states = {"m": "exp_avg", "v": "exp_avg_sq", "mu_product": "mu_product"}

        @staticmethod
        def initial_states(h: Hyper) -> dict[str, float]:
            return {"mu_product": 1.0}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            return beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 / sqrt(bias_correction(beta2, t)), h["eps"]

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            def momentum(k: int) -> float:
                return float(h["betas"][0] * (1.0 - 0.5 * 0.96 ** (k * h["momentum_decay"])))

            mu, next_mu = by_tensor(momentum, t), by_tensor(momentum, t + 1)
            product = numbers["mu_product"]
            product *= mu
            return h["lr"] * (1.0 - mu) / (1.0 - product), h["lr"] * next_mu / (1.0 - product * next_mu)

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, v: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any,
            correction2: Any, eps: Any, by_g: Any, by_m: Any,
        ) -> None:  # fmt: skip
            m *= beta1
            m += one_minus_beta1 * g
            v *= beta2
            v += one_minus_beta2 * g * g
            p -= (by_g * g + by_m * m) / (np.sqrt(v) * correction2 + eps)
