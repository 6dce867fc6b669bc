from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt._kernels import bias_correction
from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, EpsHat, Epsilon, NonNegative, Seed, StateDtype


class Adam(Optimizer):
    """Adam, and AMSGrad.

    ::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        m^ = m / (1 - beta1^t);  v^ = v / (1 - beta2^t)
        p = p - lr * m^ / (sqrt(v^ + eps_root) + eps)

    Adam with sqrt(v^ + eps) is ``eps=0, eps_root=eps``.

    Sources: Kingma, Ba 2014, arXiv:1412.6980; Reddi, Kale, Kumar 2018, arXiv:1904.09237. State:
    ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``.

    Options:
    betas: beta1 and beta2, the weights of the old in m and in v (torch's).
    eps: added to the root, against a division by 0 (torch's).
    amsgrad: v^ is made of the largest v so far, in place of v; this needs ``max_exp_avg_sq`` (torch's).
    eps_hat: an eps before bias correction, at the end of section 2 of the paper:
        lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps_hat). Give it with ``eps=0``, or as True: then
        eps is meant so (Keras', thinc's, Chainer's epsilon).
    bias_correction: False: m^ = m and v^ = v (MLX's).
    cautious: True: elements of m^ whose sign is not that of g count as 0, and the others are divided by the part of
        the parameter's elements that they are, at least 1e-3; this reads g, m and v twice (timm's caution; Liang,
        Chen, Liu, Liu 2024, arXiv:2411.16085).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        l1: NonNegative = 0.0,
        eps_root: Epsilon = 0.0,
        eps_hat: EpsHat = 0.0,
        bias_correction: bool = True,
        decoupled_weight_decay: bool = False,
        cautious: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "adam"
        states = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}

        @staticmethod
        def optional_states(h: Hyper) -> set[str]:
            return {name for name, option in (("vmax", "amsgrad"), ("cautious", "cautious")) if h[option]}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            correction1 = correction2 = 1.0
            if h["bias_correction"]:
                correction1, correction2 = bias_correction(beta1, t), bias_correction(beta2, t)
            eps, eps_hat = h["eps"], h["eps_hat"]
            if eps_hat is True:
                eps, eps_hat = 0.0, eps
            if eps_hat:
                eps += eps_hat / sqrt(correction2)
            eps_root, step_size = h["eps_root"] * correction2, h["lr"] / correction1
            return beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 / sqrt(correction2), eps_root, eps, step_size

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            return (cautious_scale(sums),)

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array, v: Array, vmax: Array | None,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any,
            correction2: Any, eps_root: Any, eps: Any, step_size: Any, scale: Any = None,
        ) -> tuple[Array] | None:  # fmt: skip
            m *= beta1
            m += one_minus_beta1 * g
            v *= beta2
            v += one_minus_beta2 * g * g
            moment = v
            if vmax is not None:
                np.maximum(v, vmax, out=vmax)
                moment = vmax
            direction = m
            if scale is not None:
                kept = m * g > 0
                direction = m * np.where(kept, scale, 0)
            p -= step_size * (direction / (np.sqrt(moment + eps_root) * correction2 + eps))
            return None if scale is None else (kept,)


def cautious_scale(sums: dict[str, Array]) -> Array:
    """The factor of the elements that a cautious step keeps: 1 / the part of all elements that they are."""
    return 1.0 / np.maximum(sums["kept"] / np.maximum(sums["elements"], 1.0), 1e-3)
