from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper, by_tensor, power
from fastopt.optimizer import Optimizer, Params
from fastopt.options import NonNegative, Seed, StateDtype


class ASGD(Optimizer):
    """Averaged SGD: steps that become shorter, and an average of the parameters beside them.

    ::

        p = (1 - lambd * eta) * p - eta * g
        ax = ax + mu * (p - ax)
        eta = lr / (1 + lambd * lr * t)^alpha;  mu = 1 / max(1, t - t0)              for the next step
        eta = lr, mu = 1                                                             for the first

    The average is in ``opt.state[i]["ax"]``; it begins after t0 steps, and is p until then. A change of lr acts one
    step late, as in torch. torch keeps eta and mu in float32; here they are in float64. optax and Keras do not have
    it.

    Source: Polyak, Juditsky 1992, SIAM J. Control and Optimization 30(4). State: ``ax``, and the numbers ``eta`` and
    ``mu``.

    Options:
    lambd: the part of p that a step with eta 1 takes away, and the rate at which eta falls (torch's).
    alpha: the power with which eta falls (torch's).
    t0: after how many steps the average begins (torch's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-2,
        lambd: NonNegative = 1e-4,
        alpha: NonNegative = 0.75,
        t0: NonNegative = 1e6,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "asgd"
        states = {"ax": "ax", "next_eta": "eta", "next_mu": "mu"}

        @staticmethod
        def initial_states(h: Hyper) -> dict[str, float]:
            return {"next_mu": 1.0}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return ()

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            eta, mu = np.where(t == 1, h["lr"], numbers["next_eta"]), numbers["next_mu"]
            numbers["next_eta"] = by_tensor(
                lambda k: h["lr"] / power(1.0 + h["lambd"] * h["lr"] * k, h["alpha"]), t
            )
            numbers["next_mu"] = by_tensor(lambda k: 1.0 / max(1.0, k - h["t0"]), t)
            return 1.0 - h["lambd"] * eta, eta, mu

        @staticmethod
        def twin(p: Array, g: Array, ax: Array, keep: Any, eta: Any, mu: Any) -> None:
            p *= keep
            p -= eta * g
            if mu == 1:
                np.positive(p, out=ax)
            else:
                ax += (p - ax) * mu
