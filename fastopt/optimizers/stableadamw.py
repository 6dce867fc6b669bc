from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, NonNegative, Seed, StateDtype


class StableAdamW(Optimizer):
    """StableAdamW: AdamW whose learning rate shrinks while gradients are larger than the moments foresee.

    ::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        m^ = m / (1 - beta1^t);  v^ = v / (1 - beta2^t)
        eta = lr / max(1, sqrt(mean of g^2 / max(v^, eps^2)))
        p = p - eta * (m^ / (sqrt(v^) + eps) + weight_decay * p)

    The mean is that of a whole parameter. It takes the place of clipping by a norm, as Adafactor's clipping of updates
    does. The package torch-optimi computes the same, but keeps m^ and v^ in its state.

    Source: Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi, Schmidt 2023, arXiv:2304.13013. State: ``exp_avg``,
    ``exp_avg_sq``.

    Options:
    betas: beta1 and beta2, the weights of the old in m and in v, before the correction (the paper's).
    eps: added to the root, against a division by 0 (the paper's).
    weight_decay: p loses this part of itself, times eta (the paper's lambda).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.99),
        eps: Epsilon = 1e-6,
        weight_decay: NonNegative = 1e-2,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "stableadamw"
        states = {"m": "exp_avg", "v": "exp_avg_sq"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            corrections = 1.0 / bias_correction(beta1, t), 1.0 / sqrt(bias_correction(beta2, t))
            return beta1, 1.0 - beta1, beta2, 1.0 - beta2, *corrections, h["eps"], h["weight_decay"]

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            mean = sums["ratio"] / np.maximum(sums["elements"], 1.0)
            return (h["lr"] / np.maximum(np.sqrt(mean), 1.0),)

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, v: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any,
            correction1: Any, correction2: Any, eps: Any, pull: Any, eta: Any,
        ) -> tuple[Array]:  # fmt: skip
            m *= beta1
            m += one_minus_beta1 * g
            v *= beta2
            v += one_minus_beta2 * g * g
            root = np.sqrt(v) * correction2
            least = np.where(root > eps, root, eps)
            part = np.where(least != 0, np.divide(g, least, dtype=np.float64), 0.0)
            p -= eta * (m * correction1 / (root + eps) + pull * p)
            return (part * part,)
