from __future__ import annotations

from typing import Any

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import NonNegative, Seed, StateDtype


class NAG(Optimizer):
    """Nesterov's accelerated gradient, with the gradient taken at the point looked ahead to.

    ::

        v = momentum * v - lr * gradient(p + momentum * v);  p = p + v

    `lookahead` moves the parameters to p + momentum * v, where the gradient is to be taken; ``step``
    returns them to the new p. Without it the gradient is that of p itself, and the step is classical
    momentum. A parameter whose gradient is None goes back to where it was, up to rounding.

    Sources: Nesterov 1983; Sutskever, Martens, Dahl, Hinton 2013 (ICML), equations 3 and 4.
    State: ``velocity``.

    Options:
    momentum: the weight of the old in v (torch's SGD's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        momentum: NonNegative = 0.9,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "nag"
        states = {"v": "velocity"}
        flags = {"ahead": False}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return h["momentum"], h["lr"], h["ahead"]

        @staticmethod
        def check_edit(h: Hyper, before: Hyper) -> None:
            for name in "momentum", "state_dtype":
                if before["ahead"] and h[name] != before[name]:
                    raise ValueError(
                        f"{name}: the parameters are ahead by momentum * v as it was; put {before[name]!r} back, "
                        "and change it after step()"
                    )

        @staticmethod
        def twin(p: Array, g: Array, v: Array, momentum: Any, lr: Any, ahead: Any) -> None:
            d = lr * g
            v *= momentum
            v -= d
            if ahead != 0:
                p -= d
            else:
                p += v

    def lookahead(self) -> None:
        """Moves every parameter to p + momentum * v; the next ``step`` takes gradients from there.

        Until then ``momentum`` and ``state_dtype`` stay what they are.
        """
        raise NotImplementedError  # PLACEHOLDER: the base class gets the means for this
