from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.optimizers.lamb import trust_ratio
from fastopt.optimizers.sgd import SGD
from fastopt.options import NonNegative, Seed, StateDtype, UnitInterval


class LARS(Optimizer):
    """LARS: momentum, with a learning rate of each parameter that is made of the norms of parameter and gradient.

    ::

        trust = trust_coeff * ||p|| / (||g|| + weight_decay * ||p|| + eps)
        u = trust * (g + weight_decay * p)
        p = p - lr * u                                                   momentum = 0
        buf = momentum * buf + (1 - dampening) * u;  p = p - lr * buf    else (first step: buf = u)
        p = p - lr * (u + momentum * buf)                                nesterov
        buf = momentum * buf + (1 - dampening) * lr * u;  p = p - buf    lr_in_momentum

    The norms are those of a whole parameter; where one of them is 0, trust is 1. timm computes this. The paper has
    the learning rate in the buffer, and momentum 0.9: that is ``lr_in_momentum=True, momentum=0.9``. optax adds
    weight_decay * p to g before it takes the norm, and the rate is in the buffer too.

    Source: You, Gitman, Ginsburg 2017, arXiv:1708.03888. State: ``momentum_buffer``.

    Options:
    lr: the global learning rate, which trust multiplies (the paper's).
    momentum: the weight of the past steps' sum; 0: the buffer is not used (the paper's).
    dampening: 1 - dampening is the weight of a step in that sum, but of the first (timm's).
    weight_decay: the part of p that is added to g, and whose norm is added to that of g (the paper's).
    nesterov: Nesterov's form; it needs a momentum above 0 and a dampening of 0 (timm's).
    trust_coeff: the part of the parameter's norm that a step with lr 1 goes (the paper's eta).
    eps: added to the divisor of trust, against a division by 0 (timm's, optax's).
    always_adapt: True: groups whose weight_decay is 0 adapt to the norms too; else their trust is 1 (timm's).
    trust_clip: True: trust is divided by lr, and then at most 1 (timm's, as LARC).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1.0,
        momentum: NonNegative = 0.0,
        dampening: UnitInterval = 0.0,
        weight_decay: NonNegative = 0.0,
        nesterov: bool = False,
        trust_coeff: NonNegative = 1e-3,
        eps: NonNegative = 1e-8,
        *,
        maximize: bool = False,
        always_adapt: bool = False,
        trust_clip: bool = False,
        lr_in_momentum: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "lars"
        states = {"buf": "momentum_buffer"}

        check = SGD.algorithm.check
        optional_states = SGD.algorithm.optional_states

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return h["weight_decay"], *SGD.algorithm.coefficients(h, t)

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            if h["weight_decay"] == 0 and not h["always_adapt"]:
                return (1.0,)
            of_parameter, of_gradient = np.sqrt(sums["pp"]), np.sqrt(sums["gg"])
            divisor = of_gradient + of_parameter * h["weight_decay"] + h["eps"]
            trust = trust_ratio(h["trust_coeff"] * of_parameter, of_gradient, divisor)
            # written as a product, because lr may be 0
            return (np.where(trust > h["lr"], 1.0, trust / h["lr"]) if h["trust_clip"] else trust,)

        @staticmethod
        def twin(
            p: Array, g: Array, buf: Array | None,
            pull: Any, momentum: Any, damped: Any, nesterov: Any, ahead: Any, lr: Any, trust: Any,
        ) -> tuple[Array, Array]:  # fmt: skip
            pp = np.multiply(p, p, dtype=np.float64)
            gg = np.multiply(g, g, dtype=np.float64)
            u = trust * (g + pull * p)
            if buf is not None:
                buf *= momentum
                buf += damped * u
                u = ahead * u + momentum * buf if nesterov != 0 else buf
            p -= lr * u
            return pp, gg
