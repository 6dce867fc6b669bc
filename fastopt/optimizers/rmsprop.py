from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.optimizers.sgd import momentum_rates
from fastopt.options import Epsilon, InitialValue, NonNegative, Seed, StateDtype, UnitInterval


class RMSprop(Optimizer):
    """RMSprop: a step size for every element, from a moving average of its squared gradients.

    ::

        s = alpha * s + (1 - alpha) * g^2
        a = alpha * a + (1 - alpha) * g;  s' = max(s - a^2, 0)           centered; else s' = s
        u = g / (sqrt(s' + eps_root) + eps)
        p = p - lr * u                                                   momentum = 0
        buf = momentum * buf + u;  p = p - lr * buf                      else
        buf = momentum * buf + lr * u;  p = p - buf                      lr_in_momentum

    s - a^2 is never negative but for cancellation; torch takes the root of it as it is and gets NaN. The
    textbook form lr / sqrt(s + eps) is ``eps=0, eps_root=eps``.

    Sources: Hinton 2012 (lecture 6e); Graves 2013, arXiv:1308.0850. State: ``square_avg``, ``grad_avg``,
    ``momentum_buffer``.

    Options:
    alpha: the weight of the old in the averages (torch's; rho in Keras, decay in optax).
    eps: added to the root, against a division by 0 (torch's).
    momentum: the weight of the past updates' sum; 0: the buffer is not used (torch's).
    centered: divide by the root of an estimated variance, in place of that of the mean square (torch's).
    initial_accumulator_value: the first value of s, taken when the optimizer is made; TensorFlow 1 has 1
        (Keras Adagrad's name).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-2,
        alpha: UnitInterval = 0.99,
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.0,
        momentum: NonNegative = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        eps_root: Epsilon = 0.0,
        initial_accumulator_value: InitialValue = 0.0,
        lr_in_momentum: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "rmsprop"
        states = {"s": "square_avg", "a": "grad_avg", "buf": "momentum_buffer"}

        @staticmethod
        def optional_states(h: Hyper) -> set[str]:
            in_use = {"a": h["centered"], "buf": h["momentum"] != 0}
            return {letter for letter, used in in_use.items() if used}

        @staticmethod
        def initial_states(h: Hyper) -> dict[str, float]:
            return {"s": h["initial_accumulator_value"]}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return h["alpha"], 1.0 - h["alpha"], h["eps_root"], h["eps"], h["momentum"], *momentum_rates(h)

        @staticmethod
        def twin(
            p: Array, g: Array, s: Array, a: Array | None, buf: Array | None,
            alpha: Any, one_minus_alpha: Any, eps_root: Any, eps: Any, momentum: Any, lr_in: Any, lr: Any,
        ) -> None:  # fmt: skip
            s *= alpha
            s += one_minus_alpha * g * g
            moment = s
            if a is not None:
                a *= alpha
                a += one_minus_alpha * g
                moment = np.maximum(s - a * a, 0)
            u = g / (np.sqrt(moment + eps_root) + eps)
            if buf is not None:
                buf *= momentum
                buf += lr_in * u
                u = buf
            p -= lr * u
