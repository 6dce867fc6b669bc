from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.optimizers.radam import rectification
from fastopt.options import Beta, Epsilon, NonNegative, Seed, StateDtype


class AdaBelief(Optimizer):
    """AdaBelief: long steps where gradients are as expected, short ones where they surprise.

    ::

        p = p * (1 - lr * weight_decay)
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * (g - m)^2 + eps_root
        m^ = m / (1 - beta1^t);  s^ = s / (1 - beta2^t)
        p = p - lr * m^ / (sqrt(s^) + eps)

    optax computes this, without weight decay. The authors' package adabelief-pytorch has one eps for both here,
    and ``rectify=True`` as its default.

    Source: Zhuang, Tang, Ding, Tatikonda, Dvornek, Papademetris, Duncan 2020, arXiv:2010.07468. State:
    ``exp_avg``, ``exp_avg_var``.

    Options:
    betas: beta1 and beta2, the weights of the old in m and in s (the authors').
    eps: added to the root, against a division by 0; 1e-8 is advised where SGD is better than Adam (the authors').
    weight_decay: p loses this part of itself, times lr, before the update (the authors').
    eps_root: added to s in every step (optax's).
    decoupled_weight_decay: False: g + weight_decay * p takes the place of g (the authors' weight_decouple).
    rectify: steps are rectified as in `RAdam`, with sqrt(s) + eps as the divisor before bias correction; no
        division at all in the first steps (the authors').
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Epsilon = 1e-16,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        eps_root: Epsilon = 1e-16,
        decoupled_weight_decay: bool = True,
        rectify: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "adabelief"
        states = {"m": "exp_avg", "s": "exp_avg_var"}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            step_size, limit = h["lr"] / bias_correction(beta1, t), math.inf
            correction2 = 1.0 / math.sqrt(bias_correction(beta2, t))
            if h["rectify"]:
                rectifier = rectification(beta2, t)
                step_size *= math.sqrt(bias_correction(beta2, t)) * rectifier if rectifier else 1.0
                correction2, limit = 1.0, math.inf if rectifier else -1.0
            return (
                *(beta1, 1.0 - beta1, beta2, 1.0 - beta2),
                *(correction2, h["eps_root"], h["eps"], limit, step_size),
            )

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, s: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any,
            correction2: Any, eps_root: Any, eps: Any, limit: Any, step_size: Any,
        ) -> None:  # fmt: skip
            m *= beta1
            m += one_minus_beta1 * g
            surprise = g - m
            s *= beta2
            s += one_minus_beta2 * surprise * surprise
            s += eps_root
            root = np.sqrt(s) * correction2 + eps
            p -= step_size * (m / np.where(root > limit, 1, root))
