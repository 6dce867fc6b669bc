from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Epsilon, NonNegative, Seed, StateDtype, UnitInterval


class Adadelta(Optimizer):
    """Adadelta: RMSprop whose step size is a moving average of the squared updates.

    ::

        s = rho * s + (1 - rho) * g^2
        delta = sqrt((d + eps) / (s + eps)) * g
        d = rho * d + (1 - rho) * delta^2
        p = p - lr * delta

    Source: Zeiler 2012, arXiv:1212.5701. State: ``square_avg``, ``acc_delta``.

    Options:
    rho: the weight of the old in both averages (torch's).
    eps: added under both roots; a larger one makes the first steps larger (torch's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1.0,
        rho: UnitInterval = 0.9,
        eps: Epsilon = 1e-6,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "adadelta"
        states = {"s": "square_avg", "d": "acc_delta"}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return h["rho"], 1.0 - h["rho"], h["eps"], h["lr"]

        @staticmethod
        def twin(p: Array, g: Array, s: Array, d: Array, rho: Any, one_minus_rho: Any, eps: Any, lr: Any) -> None:
            s *= rho
            s += one_minus_rho * g * g
            above, below = d + eps, s + eps
            is_small = above < np.where(below < 64, below, 64)
            root = np.sqrt(np.where(is_small, above * 2.0**120, above) / below)
            delta = np.where(is_small, root * 2.0**-60, root) * g
            d *= rho
            d += one_minus_rho * delta * delta
            p -= lr * delta
