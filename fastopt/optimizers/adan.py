from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, NonNegative, Seed, StateDtype


class Adan(Optimizer):
    """Adan: Nesterov's momentum by way of the change of the gradient, with steps as in Adam.

    ::

        d = g - the last gradient                                        0 in the first step
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * d
        n = beta3 * n + (1 - beta3) * (g + beta2 * d)^2
        m^ = m / (1 - beta1^t);  v^ = v / (1 - beta2^t);  n^ = n / (1 - beta3^t)
        u = (m^ + beta2 * v^) / (sqrt(n^) + eps)
        p = (p - lr * u) / (1 + lr * weight_decay)
        p = p * (1 - lr * weight_decay) - lr * u                         no_prox

    The authors' code and timm compute this. Their max_grad_norm is ``step(grads, max_norm=…)`` here. The betas are
    the weights of the old, as in that code; the paper's are 1 minus these. optax multiplies by 1 - beta2 where
    this has beta2, which agrees neither with the authors' code nor with the paper.

    Source: Xie, Zhou, Li, Lin, Yan 2022, arXiv:2208.06677. State: ``exp_avg``, ``exp_avg_sq`` (n),
    ``exp_avg_diff`` (v), ``neg_pre_grad`` (minus the last gradient).

    Options:
    betas: beta1, beta2 and beta3, the weights of the old in m, v and n (the authors').
    eps: added to the root, against a division by 0 (the authors').
    weight_decay: how much p is drawn to 0, times lr (the authors').
    no_prox: False: p is divided by 1 + lr * weight_decay after the update. True: it is multiplied by
        1 - lr * weight_decay before it (the authors').
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta, Beta] = (0.98, 0.92, 0.99),
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
        no_prox: bool = False,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "adan"
        states = {"m": "exp_avg", "n": "exp_avg_sq", "v": "exp_avg_diff", "before": "neg_pre_grad"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0 - h["lr"] * h["weight_decay"] if h["no_prox"] else 1.0

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2, beta3 = h["betas"]
            shrink = 1.0 if h["no_prox"] else 1.0 / (1.0 + h["lr"] * h["weight_decay"])
            return (
                *(beta1, 1.0 - beta1, beta2, 1.0 - beta2, beta3, 1.0 - beta3, t > 1),
                *(h["lr"] / bias_correction(beta1, t), h["lr"] * beta2 / bias_correction(beta2, t)),
                *(1.0 / math.sqrt(bias_correction(beta3, t)), h["eps"], shrink),
            )

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, n: Array, v: Array, before: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any, beta3: Any, one_minus_beta3: Any,
            known: Any, step_m: Any, step_v: Any, correction3: Any, eps: Any, shrink: Any,
        ) -> None:  # fmt: skip
            change = known * (g + before)
            m *= beta1
            m += one_minus_beta1 * g
            v *= beta2
            v += one_minus_beta2 * change
            ahead = g + beta2 * change
            n *= beta3
            n += one_minus_beta3 * ahead * ahead
            np.multiply(g, -1, out=before)  # a product, which may flush subnormal numbers
            p -= (step_m * m + step_v * v) / (np.sqrt(n) * correction3 + eps)
            p *= shrink
