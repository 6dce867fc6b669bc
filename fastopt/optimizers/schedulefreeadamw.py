from __future__ import annotations

from math import sqrt
from typing import Annotated, Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, Interval, NonNegative, Number, Seed, StateDtype
from fastopt.schedule_free import ScheduleFree, weights


class ScheduleFreeAdamW(ScheduleFree, Optimizer):
    """Schedule-free AdamW: an average of the parameters in the place of a schedule and of momentum.

    ::

        v = beta2 * v + (1 - beta2) * g^2
        u = g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * y
        lr_t = lr * min(1, t / warmup_steps);  w = t^r * max(lr_1 ... lr_t)^weight_lr_power
        c = w / (sum of all w so far)
        y = y + c * (z - y) + lr_t * (beta1 * (1 - c) - 1) * u
        z = z - lr_t * u

    The parameters are y while it trains; call ``opt.eval()`` before they are used and ``opt.train()`` before the
    next step. The average itself, x = y + (1 - 1 / beta1) * (z - y), takes no memory; between the two calls a copy
    of y does. It may not be combined with another average. The authors' package schedulefree computes the same,
    but begins in evaluation, and counts steps by groups, fastopt by parameters. Keras' differs where there is a
    warm-up or decay.

    Source: Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky 2024, arXiv:2405.15682. State: ``z``,
    ``exp_avg_sq``, and the numbers ``weight_sum`` and ``lr_max``.

    Options:
    lr: the learning rate, which is to be larger than with a schedule (the authors').
    betas: beta1, where between z and the average the gradient is taken, not 0, and beta2, the weight of the old in v
        (the authors').
    eps: added to the root, against a division by 0 (the authors').
    weight_decay: the part of y that is added to the direction (the authors').
    warmup_steps: for so many steps lr grows from 0 (the authors').
    r: the power of t by which later steps weigh more in the average (the authors').
    weight_lr_power: the power of lr by which steps weigh in the average, so that those of the warm-up weigh less (the
        authors').
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 2.5e-3,
        betas: tuple[Annotated[Number, Interval(0, 1, "()")], Beta] = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
        warmup_steps: Annotated[int, Interval(0)] = 0,
        r: NonNegative = 0.0,
        weight_lr_power: NonNegative = 2.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "schedulefreeadamw"
        states = {"z": "z", "v": "exp_avg_sq", "weight_sum": "weight_sum", "lr_max": "lr_max"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta2 = h["betas"][1]
            return t == 1, beta2, 1.0 - beta2, 1.0 / sqrt(bias_correction(beta2, t)), h["eps"], h["weight_decay"]

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            return weights(h, h["betas"][0], t, numbers)

        @staticmethod
        def twin(
            p: Array, g: Array, z: Array, v: Array,
            first: Any, beta2: Any, one_minus_beta2: Any, correction2: Any, eps: Any, pull: Any,
            part: Any, along: Any, rate: Any,
        ) -> None:  # fmt: skip
            start = np.where(first, p, z)
            v *= beta2
            v += one_minus_beta2 * g * g
            u = g / (np.sqrt(v) * correction2 + eps) + pull * p
            np.add(p + part * (start - p), along * u, out=p)
            np.subtract(start, rate * u, out=z)
