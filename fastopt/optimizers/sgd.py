from __future__ import annotations

from typing import Any

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import NonNegative, Seed, StateDtype, UnitInterval


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's form of it.

    ::

        p = p - lr * g                                                   momentum = 0
        buf = momentum * buf + (1 - dampening) * g;  p = p - lr * buf    else (first step: buf = g)
        p = p - lr * (g + momentum * buf)                                nesterov
        buf = momentum * buf + (1 - dampening) * lr * g;  p = p - buf    lr_in_momentum

    Momentum as a moving average, v = beta * v + (1 - beta) * g, is ``SGD(lr * (1 - beta), momentum=beta)``.
    A momentum that is switched on later begins with a buffer of zeros.

    Sources: Polyak 1964; Sutskever, Martens, Dahl, Hinton 2013 (ICML). State: ``momentum_buffer``.

    Options:
    momentum: the weight of the past gradients' sum; 0: the buffer is not used (torch's).
    dampening: 1 - dampening is the weight of a gradient in that sum, but of the first (torch's).
    nesterov: Nesterov's form; it needs a momentum above 0 and a dampening of 0 (torch's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        momentum: NonNegative = 0.0,
        dampening: UnitInterval = 0.0,
        weight_decay: NonNegative = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        l1: NonNegative = 0.0,
        lr_in_momentum: bool = False,
        decoupled_weight_decay: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "sgd"
        states = {"buf": "momentum_buffer"}

        @staticmethod
        def check(h: Hyper) -> None:
            if h["nesterov"] and (h["momentum"] == 0 or h["dampening"] != 0):
                raise ValueError("nesterov: it needs a momentum above 0 and a dampening of 0")

        @staticmethod
        def optional_states(h: Hyper) -> set[str]:
            return {"buf"} if h["momentum"] != 0 else set()

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            damped = 1.0 if t == 1 else 1.0 - h["dampening"]
            lr_in, lr_out = momentum_rates(h)
            return h["momentum"], damped * lr_in, h["nesterov"], lr_in, lr_out

        @staticmethod
        def twin(
            p: Array, g: Array, buf: Array | None, momentum: Any, damped: Any, nesterov: Any, ahead: Any, lr: Any
        ) -> None:
            u = g
            if buf is not None:
                buf *= momentum
                buf += damped * g
                u = ahead * g + momentum * buf if nesterov != 0 else buf
            p -= lr * u


def momentum_rates(h: Hyper) -> tuple[float, float]:
    """The learning rates of what enters the momentum buffer and of what leaves it: one of them is lr, one 1."""
    return (h["lr"], 1.0) if h["lr_in_momentum"] and h["momentum"] != 0 else (1.0, h["lr"])
