from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import NonNegative, Seed, StateDtype, UnitInterval


class Signum(Optimizer):
    """Signum: steps of one length, in the direction of the sign of the averaged gradient.

    ::

        m = momentum * m + (1 - momentum) * g
        p = p - lr * sign(m)

    The sign of 0 is 0. With ``momentum=0`` it is signSGD.

    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar 2018, arXiv:1802.04434. State: ``exp_avg``.

    Options:
    momentum: the weight of the old in the average of the gradients (the paper's beta).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        momentum: UnitInterval = 0.9,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "signum"
        states = {"m": "exp_avg"}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return h["momentum"], 1.0 - h["momentum"], h["lr"]

        @staticmethod
        def twin(p: Array, g: Array, m: Array, beta: Any, one_minus_beta: Any, lr: Any) -> None:
            m *= beta
            m += one_minus_beta * g
            p -= lr * np.sign(m)
