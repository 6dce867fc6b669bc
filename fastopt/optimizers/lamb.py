from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, Epsilon, NonNegative, Seed, StateDtype


class LAMB(Optimizer):
    """LAMB: Adam's direction, with steps as long as a part lr of the parameter's norm, for large batches.

    ::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        m^ = m / (1 - beta1^t);  v^ = v / (1 - beta2^t)
        u = m^ / (sqrt(v^) + eps) + weight_decay * p
        p = p - lr * (||p|| / ||u||) * u

    The norms are those of a whole parameter; where one of them is 0, the quotient is 1. This is version 3 of the
    paper, and optax's with ``always_adapt=True, weight_decay=0``. timm and apex also divide all gradients by
    their global norm where that is above 1: ``step(grads, max_norm=1.0)``, but for the 1e-6 that clipping adds to the
    norm. Keras decays the weights before the step, outside the norms.

    Source: You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh 2019, arXiv:1904.00962.
    State: ``exp_avg``, ``exp_avg_sq``.

    Options:
    lr: the length of a step, as a part of the parameter's norm (the paper's).
    betas: beta1 and beta2, the weights of the old in m and in v (the paper's).
    eps: added to the root, against a division by 0 (timm's, optax's).
    weight_decay: the part of p that is added to the direction, and so to its norm (the paper's lambda).
    bias_correction: False: m^ = m and v^ = v (timm's).
    always_adapt: True: groups whose weight_decay is 0 adapt to the norms too; else their quotient is 1 (timm's).
    trust_clip: True: the quotient of the norms is at most 1 (timm's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Epsilon = 1e-6,
        weight_decay: NonNegative = 1e-2,
        *,
        maximize: bool = False,
        bias_correction: bool = True,
        always_adapt: bool = False,
        trust_clip: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "lamb"
        states = {"m": "exp_avg", "v": "exp_avg_sq"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            correction1 = correction2 = 1.0
            if h["bias_correction"]:
                correction1, correction2 = 1.0 / bias_correction(beta1, t), 1.0 / sqrt(bias_correction(beta2, t))
            weights = beta1, 1.0 - beta1, beta2, 1.0 - beta2
            return *weights, correction1, correction2, h["eps"], h["weight_decay"], h["lr"]

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            if h["weight_decay"] == 0 and not h["always_adapt"]:
                return (1.0,)
            # the root of each sum first: their quotient could be 0 or infinite
            trust = trust_ratio(np.sqrt(sums["pp"]), np.sqrt(sums["uu"]))
            return (np.minimum(trust, 1.0) if h["trust_clip"] else trust,)

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, v: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any,
            correction1: Any, correction2: Any, eps: Any, pull: Any, lr: Any, trust: Any,
        ) -> tuple[Array, Array]:  # fmt: skip
            m *= beta1
            m += one_minus_beta1 * g
            v *= beta2
            v += one_minus_beta2 * g * g
            u = m * correction1 / (np.sqrt(v) * correction2 + eps) + pull * p
            pp = np.multiply(p, p, dtype=np.float64)
            uu = np.multiply(u, u, dtype=np.float64)
            p -= lr * trust * u
            return pp, uu


def trust_ratio(of_parameter: Array, of_step: Array, divisor: Array | None = None) -> Array:
    """The norm of each parameter by a divisor, which is the norm of its step if left out; 1 where a norm is 0."""
    divisor = of_step if divisor is None else divisor
    return np.where((of_parameter > 0) & (of_step > 0), of_parameter / divisor, 1.0)
