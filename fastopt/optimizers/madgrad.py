from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, NonNegative, Seed, StateDtype
from fastopt.reference import cbrt


class MADGRAD(Optimizer):
    """MADGRAD: dual averaging with steps as in Adagrad, but by the cube root, and momentum.

    ::

        lamb = (lr + eps) * sqrt(t)                                      0 where lr is 0
        q = q + lamb * g^2
        s = s + lamb * g
        z = x - s / (cbrt(q) + eps)                                      x: p before the first step
        p = momentum * p + (1 - momentum) * z

    The package madgrad of the authors, and timm, compute this. They count the steps of all parameters together,
    fastopt those of each. The authors advise little weight decay, often none. In float32 the cube root is right to
    a few units of the last place.

    Source: Defazio, Jelassi 2021, arXiv:2101.11075. State: ``grad_sum_sq`` (q), ``s``, ``x0`` (x).

    Options:
    momentum: the weight of the old in the average of the z (the authors').
    eps: added to the root, against a division by 0, and to lr (the authors').
    decoupled_weight_decay: (lr + eps) * weight_decay * p is taken from the new p, of the p before it (the authors'
        decouple_decay).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-2,
        momentum: Beta = 0.9,
        weight_decay: NonNegative = 0.0,
        eps: Epsilon = 1e-6,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "madgrad"
        states = {"q": "grad_sum_sq", "s": "s", "x": "x0"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0 if h["decoupled_weight_decay"] else h["weight_decay"], 1.0

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            lr, momentum, eps = h["lr"], h["momentum"], h["eps"]
            lr += eps if lr else 0.0
            decay = lr * h["weight_decay"] if h["decoupled_weight_decay"] else 0.0
            drift = decay if momentum == 0 else 0.0
            return t == 1, lr * math.sqrt(t), eps, momentum - decay, 1.0 - momentum, drift

        @staticmethod
        def twin(
            p: Array, g: Array, q: Array, s: Array, x: Array,
            first: Any, lamb: Any, eps: Any, keep: Any, part: Any, drift: Any,
        ) -> None:  # fmt: skip
            start = np.where(first, p, x)
            q += lamb * g * g
            s += lamb * g
            root = cbrt(q) + eps
            z = start - s / np.where(root > 0, root, 1)
            np.subtract(start, drift * p, out=x)
            p *= keep
            p += part * z
