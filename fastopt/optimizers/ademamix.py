from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, Interval, NonNegative, Seed, StateDtype


class AdEMAMix(Optimizer):
    """AdEMAMix: Adam with a second average of the gradients, which is slow to forget.

    ::

        p = p * (1 - lr * weight_decay)
        m1 = beta1 * m1 + (1 - beta1) * g
        m2 = beta3 * m2 + (1 - beta3) * g
        v = beta2 * v + (1 - beta2) * g^2
        m^ = m1 / (1 - beta1^t);  v^ = v / (1 - beta2^t)
        p = p - lr * (m^ + alpha * m2) / (sqrt(v^) + eps)

    In the first ``alpha_warmup`` steps alpha grows in proportion to t, and in the first ``beta3_warmup`` the
    half-life of m2 grows evenly from that of m1: training is less stable without. The paper sets both to the
    number of steps of the training. In the authors' code for torch alpha is 2 by default, in theirs for optax 5.

    Source: Pagliardini, Ablin, Grangier 2024, arXiv:2409.03137. State: ``exp_avg_fast`` (m1), ``exp_avg_slow``
    (m2), ``exp_avg_sq``.

    Options:
    betas: beta1, beta2 and beta3, the weights of the old in m1, v and m2 (the authors').
    alpha: the weight of m2; the paper has 4 to 10 (the authors').
    beta3_warmup: in how many steps beta3 grows from beta1 to its value; None: it has it from the first (the
        authors').
    alpha_warmup: in how many steps alpha grows from 0 to its value; None: it has it from the first (the authors').
    eps: added to the root, against a division by 0 (the authors').
    weight_decay: p loses this part of itself, times lr, before the update (the authors').
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta, Beta] = (0.9, 0.999, 0.9999),
        alpha: NonNegative = 5.0,
        beta3_warmup: Annotated[int, Interval(1)] | None = None,
        alpha_warmup: Annotated[int, Interval(1)] | None = None,
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "ademamix"
        states = {"m": "exp_avg_fast", "slow": "exp_avg_slow", "v": "exp_avg_sq"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0 - h["lr"] * h["weight_decay"]

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2, beta3 = h["betas"]
            alpha, alpha_warmup, beta3_warmup = h["alpha"], h["alpha_warmup"], h["beta3_warmup"]
            if alpha_warmup is not None and t < alpha_warmup:
                alpha *= t / alpha_warmup
            if beta3_warmup is not None and t < beta3_warmup:
                part = t / beta3_warmup
                beta3 = 0.5 ** (1.0 / ((1.0 - part) * half_life(beta1) + part * half_life(beta3)))
            return (
                *(beta1, 1.0 - beta1, beta2, 1.0 - beta2, beta3, 1.0 - beta3, alpha),
                *(1.0 / bias_correction(beta1, t), 1.0 / math.sqrt(bias_correction(beta2, t)), h["eps"], h["lr"]),
            )

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, slow: Array, v: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any, beta3: Any, one_minus_beta3: Any,
            alpha: Any, correction1: Any, correction2: Any, eps: Any, lr: Any,
        ) -> None:  # fmt: skip
            m *= beta1
            m += one_minus_beta1 * g
            slow *= beta3
            slow += one_minus_beta3 * g
            v *= beta2
            v += one_minus_beta2 * g * g
            p -= lr * ((m * correction1 + alpha * slow) / (np.sqrt(v) * correction2 + eps))


def half_life(beta: float) -> float:
    """In how many steps a moving average forgets half. The authors add 1e-8 for a beta of 0."""
    return math.log(0.5) / math.log(min(beta + 1e-8, math.nextafter(1.0, 0.0)))
