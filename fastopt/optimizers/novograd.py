from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Beta, NonNegative, Seed, StateDtype


class NovoGrad(Optimizer):
    """NovoGrad: momentum of gradients, each divided by a moving average of its own norm.

    ::

        v = beta2 * v + (1 - beta2) * ||g||^2            (first step: v = ||g||^2)
        m = beta1 * m + g / (sqrt(v + eps_root) + eps) + weight_decay * p
        p = p - lr * m

    v is one number for a whole parameter, so the state takes half of Adam's memory. optax computes this. NVIDIA's
    code can weight what is added to m by 1 - beta1 besides: that is ``lr * (1 - beta1)`` here.

    Source: Ginsburg, Castonguay, Hrinchuk, Kuchaiev, Lavrukhin, Leary, Li, Nguyen, Zhang, Cohen 2019,
    arXiv:1905.11286. State: ``exp_avg``, and the number ``exp_avg_sq``.

    Options:
    betas: beta1 and beta2, the weights of the old in m and in v (the paper's).
    eps: added to the root, against a division by 0 (the paper's).
    weight_decay: the part of p that is added to the scaled gradient (the paper's d).
    eps_root: added to v under the root (optax's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.25),
        eps: NonNegative = 1e-6,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        eps_root: NonNegative = 0.0,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "novograd"
        states = {"m": "exp_avg", "v": "exp_avg_sq"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return h["betas"][0], h["weight_decay"], h["lr"]

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            beta2, v = h["betas"][1], numbers["v"]
            v[:] = np.where(t == 1, sums["gg"], beta2 * v + (1.0 - beta2) * sums["gg"])
            return (1.0 / (np.sqrt(v + h["eps_root"]) + h["eps"]),)

        @staticmethod
        def twin(p: Array, g: Array, m: Array, beta1: Any, pull: Any, lr: Any, scale: Any) -> tuple[Array]:
            gg = np.multiply(g, g, dtype=np.float64)
            m *= beta1
            m += scale * g + pull * p
            p -= lr * m
            return (gg,)
