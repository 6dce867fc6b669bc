from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Epsilon, InitialValue, NonNegative, Seed, StateDtype


class Adagrad(Optimizer):
    """Adagrad: a step size for every element, from the sum of its squared gradients.

    ::

        s = s + g^2
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s + eps_root) + eps)

    The textbook form lr / sqrt(s + eps) is ``eps=0, eps_root=eps``.

    Source: Duchi, Hazan, Singer 2011 (JMLR 12). State: ``sum``.

    Options:
    lr_decay: how fast the learning rate falls with the number of steps (torch's).
    initial_accumulator_value: the first value of s, taken when the optimizer is made (torch's).
    eps: added to the root, against a division by 0 (torch's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-2,
        lr_decay: NonNegative = 0.0,
        weight_decay: NonNegative = 0.0,
        initial_accumulator_value: InitialValue = 0.0,
        eps: Epsilon = 1e-10,
        *,
        maximize: bool = False,
        l1: NonNegative = 0.0,
        eps_root: Epsilon = 0.0,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "adagrad"
        states = {"s": "sum"}

        @staticmethod
        def initial_states(h: Hyper) -> dict[str, float]:
            return {"s": h["initial_accumulator_value"]}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return h["lr"] / (1.0 + (t - 1) * h["lr_decay"]), h["eps_root"], h["eps"]

        @staticmethod
        def twin(p: Array, g: Array, s: Array, lr: Any, eps_root: Any, eps: Any) -> None:
            s += g * g
            p -= lr * (g / (np.sqrt(s + eps_root) + eps))
