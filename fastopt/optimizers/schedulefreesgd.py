from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Interval, NonNegative, Number, Seed, StateDtype
from fastopt.schedule_free import ScheduleFree, weights


class ScheduleFreeSGD(ScheduleFree, Optimizer):
    """Schedule-free SGD: an average of the parameters in the place of a schedule and of momentum.

    ::

        lr_t = lr * min(1, t / warmup_steps);  w = t^r * max(lr_1 ... lr_t)^weight_lr_power
        c = w / (sum of all w so far)
        y = y + c * (z - y) + lr_t * (momentum * (1 - c) - 1) * g
        z = z - lr_t * g

    The parameters are y while it trains; call ``opt.eval()`` before they are used and ``opt.train()`` before the
    next step. The average itself, x = y + (1 - 1 / momentum) * (z - y), takes no memory; between the two calls a
    copy of y does. It may not be combined with another average. The authors' package schedulefree computes the
    same, but begins in evaluation, and counts steps by groups, fastopt by parameters.

    Source: Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky 2024, arXiv:2405.15682. State: ``z``, and the numbers
    ``weight_sum`` and ``lr_max``.

    Options:
    lr: the learning rate, which is to be larger than with a schedule (the authors').
    momentum: where between z and the average the gradient is taken; not 0 (the authors').
    weight_decay: the part of y that is added to the gradient (the authors').
    warmup_steps: for so many steps lr grows from 0 (the authors').
    r: the power of t by which later steps weigh more in the average (the authors').
    weight_lr_power: the power of lr by which steps weigh in the average, so that those of the warm-up weigh less (the
        authors').
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1.0,
        momentum: Annotated[Number, Interval(0, 1, "()")] = 0.9,
        weight_decay: NonNegative = 0.0,
        warmup_steps: Annotated[int, Interval(0)] = 0,
        r: NonNegative = 0.0,
        weight_lr_power: NonNegative = 2.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "schedulefreesgd"
        states = {"z": "z", "weight_sum": "weight_sum", "lr_max": "lr_max"}

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return (t == 1,)

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            return weights(h, h["momentum"], t, numbers)

        @staticmethod
        def twin(p: Array, g: Array, z: Array, first: Any, part: Any, along: Any, rate: Any) -> None:
            start = np.where(first, p, z)
            np.add(p + part * (start - p), along * g, out=p)
            np.subtract(start, rate * g, out=z)
