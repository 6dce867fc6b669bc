"""What the schedule-free optimizers share: the weights of their average, and the change between its two points."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import arrays, storage
from fastopt._plan import Applied
from fastopt._turns import reading
from fastopt.algorithm import Array, Hyper, by_tensor, power
from fastopt.arrays import Key
from fastopt.parameters import given_by_key

if TYPE_CHECKING:
    from fastopt._plan import Plan
    from fastopt._turns import Turns


class ScheduleFree:
    """The part of an optimizer that averages its parameters itself: the gradient is taken at y, the average is x.

    While it trains, the parameters are y. `eval` makes them x, `train` makes them y again.
    """

    if TYPE_CHECKING:
        _plan: Plan
        _turns: Turns

    def eval(self, params: Any = None) -> None:
        """Gives the parameters the values of the average x, for a validation or at the end; steps raise until `train`.

        params: for an optimizer that was made without them, the arrays, as for `update`. A copy of the parameters is
        kept meanwhile, so that `train` puts back their very bits; `fastopt.save` writes these. Nothing happens where
        the parameters are x already.
        """
        if self._plan.applied is None:
            evaluation = Evaluation(self)
            evaluation.block = Applied(self, evaluation, lambda: self._averages(params))
            evaluation.block.__enter__()

    def train(self) -> None:
        """Gives the parameters the values y again that they had before `eval`, exactly; nothing happens without it."""
        evaluation = self._plan.applied
        if evaluation is not None:
            evaluation.block.__exit__()

    @property
    @reading
    def is_training(self) -> bool:
        """Whether the parameters are y, where gradients are to be taken."""
        return self._plan.applied is None

    def _averages(self, params: Any) -> list[tuple[Key, Array, Array]]:
        """The parameters by their keys, and x for each: p + (1 - 1 / beta1) * (z - p)."""
        return arrays.quietly(self._averages_of, given_by_key(self._plan, params, "eval"))

    def _averages_of(self, given: dict[Key, Any]) -> list[tuple[Key, Array, Array]]:
        plan, found = self._plan, []
        for key, value in given.items():
            label = arrays.label_of(key)
            if key not in plan.place:
                raise ValueError(f"{label}: it has made no step; pass it to update() first")
            tensor = plan.tensors[plan.place[key]]
            array = arrays.checked_parameter(label, value)
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise ValueError(f"{label}: it is not like the parameter of that name; pass the same array")
            if not tensor.steps:
                continue
            h = plan.groups[tensor.group].numbers_after(tensor.steps)
            beta1 = h["betas"][0] if "betas" in h else h["momentum"]
            p, z = storage.widened(array), storage.widened(tensor.states["z"])
            x = p + p.dtype.type(1.0 - 1.0 / beta1) * (z.reshape(p.shape) - p)
            values = np.empty_like(array)
            storage.nearest(values, x)
            found.append((key, array, values))
        return found

    def _contents(self, refuses_views: bool) -> dict[str, Any]:
        if self._plan.applied is not None:
            raise RuntimeError("the parameters are those of the average, after eval(); call train() before a copy")
        contents: dict[str, Any] = super()._contents(refuses_views)  # type: ignore[misc]
        return contents


class Evaluation:
    """The time between `ScheduleFree.eval` and `ScheduleFree.train`."""

    leave = "call train() first"
    block: Applied

    def __init__(self, opt: ScheduleFree) -> None:
        self._name = type(opt).__name__

    def __repr__(self) -> str:
        return f"{self._name}.eval()"


def weights(h: Hyper, beta1: float, t: Array, numbers: dict[str, Array]) -> tuple[Array, Array, Array]:
    """The FACTORS of a schedule-free step: the weight of z in the average, the step along u of y, and that of z."""
    weight = partial(_weight, h["lr"], beta1, h["warmup_steps"], h["r"], h["weight_lr_power"])
    part, along, rate, lr_max, weight_sum = by_tensor(weight, t, numbers["lr_max"], numbers["weight_sum"]).T
    numbers["lr_max"][:], numbers["weight_sum"][:] = lr_max, weight_sum
    return part, along, rate


def _weight(
    lr: float,
    beta1: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
    t: int,
    lr_max: float,
    weight_sum: float,
) -> tuple[float, ...]:
    rate = lr * min(t / warmup_steps, 1.0) if warmup_steps else lr
    lr_max = max(rate, lr_max)
    weight = power(t, r) * power(lr_max, weight_lr_power)
    weight_sum += weight
    part = weight / weight_sum if weight_sum else 0.0
    return part, rate * (beta1 * (1.0 - part) - 1.0), rate, lr_max, weight_sum
