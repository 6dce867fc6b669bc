from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper, power
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, NonNegative, Seed, StateDtype


class ADOPT(Optimizer):
    """ADOPT: Adam that divides a gradient by the root of the mean square before it, and converges for every beta2.

    ::

        v = g^2                                                          first step; p and m stay
        u = clip(g / max(sqrt(v), eps), -(t-1)^clip_exp, (t-1)^clip_exp)
        m = beta1 * m + (1 - beta1) * u
        v = beta2 * v + (1 - beta2) * g^2
        p = p - lr * m

    The authors' code and optax compute this. timm's clip_exp is 1/3 by default. Decoupled decay leaves out the
    first step, as in the authors' code.

    Source: Taniguchi, Harada, Minegishi, Oshima, Jeong, Nagahara, Iiyama, Suzuki, Iwasawa, Matsuo 2024,
    arXiv:2411.02853. State: ``exp_avg``, ``exp_avg_sq``.

    Options:
    betas: beta1 and beta2, the weights of the old in m and in v (the authors').
    eps: what the root is at least, against a division by 0 (the authors').
    clip_exp: the bound of u grows as this power of t - 1; None: no bound (timm's; the authors' clip_lambda is the
        function itself).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.9999),
        eps: Epsilon = 1e-6,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        clip_exp: NonNegative | None = 0.25,
        decoupled_weight_decay: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "adopt"
        states = {"m": "exp_avg", "v": "exp_avg_sq"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0 if h["decoupled_weight_decay"] else h["weight_decay"], 1.0

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            one_minus_beta2, bound, keep = 1.0 - beta2, math.inf, 1.0
            if t == 1:
                beta2 = one_minus_beta2 = 1.0
                bound = 0.0
            else:
                if h["clip_exp"] is not None:
                    bound = power(t - 1.0, h["clip_exp"])
                if h["decoupled_weight_decay"]:
                    keep = 1.0 - h["lr"] * h["weight_decay"]
            return beta1, 1.0 - beta1, beta2, one_minus_beta2, h["eps"], bound, keep, h["lr"]

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, v: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any,
            eps: Any, bound: Any, keep: Any, lr: Any,
        ) -> None:  # fmt: skip
            u = g / np.maximum(np.sqrt(v), eps)
            u = np.copysign(np.minimum(np.abs(u), bound), u)
            m *= beta1
            m += one_minus_beta1 * u
            v *= beta2
            v += one_minus_beta2 * g * g
            p *= keep
            p -= lr * m
