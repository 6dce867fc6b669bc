from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.options import Interval, NonNegative, Number, Positive, Seed, StateDtype


class Rprop(Optimizer):
    """Rprop: each element has a step of its own, which grows while its gradient keeps its sign. For whole batches.

    ::

        step = clip(step * eta_plus, smallest, largest);  p = p - step * sign(g);  prev = g    g * prev > 0
        step = clip(step * eta_minus, smallest, largest);  prev = 0                            g * prev < 0
        step = clip(step, smallest, largest);  p = p - step * sign(g);  prev = g               else

    The signs alone are used, so it suits gradients of all data and no others. The sign of 0 is 0. torch computes
    the same. optax makes each update one step late (its first call does not move p); its defaults are those here
    but for lr, which it has none for.

    Sources: Riedmiller, Braun 1993 (ICNN); Igel, Huesken 2000 (iRprop-). State: ``prev``, ``step_size``.

    Options:
    lr: the length of every element's first step; it is used in the first update alone (torch's).
    etas: eta_minus and eta_plus, the factors of a step where the gradient's sign changes and where not (torch's).
    step_sizes: the smallest and the largest step (torch's).
    weight_decay: g + weight_decay * p takes the place of g (fastopt's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-2,
        etas: tuple[Annotated[Number, Interval(0, 1, "()")], Annotated[Number, Interval(1, ends="()")]] = (
            0.5,
            1.2,
        ),
        step_sizes: tuple[NonNegative, Positive] = (1e-6, 50.0),
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "rprop"
        states = {"before": "prev", "step": "step_size"}

        @staticmethod
        def check(h: Hyper) -> None:
            smallest, largest = h["step_sizes"]
            if not callable(smallest) and not callable(largest) and smallest > largest:
                raise ValueError("step_sizes: the first must not be larger than the second; swap them")

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            return h["lr"] if t == 1 else 0.0, *h["etas"], *h["step_sizes"]

        @staticmethod
        def twin(
            p: Array, g: Array, before: Array, step: Array,
            start: Any, shrink: Any, grow: Any, shortest: Any, longest: Any,
        ) -> None:  # fmt: skip
            product = g * before
            step += start
            longer = np.where(product > 0, step * grow, np.where(product < 0, step * shrink, step))
            np.minimum(np.maximum(longer, shortest), longest, out=step)
            np.multiply(np.where(product < 0, 0, g), 1, out=before)  # a product, which may flush subnormal numbers
            p -= step * np.sign(before)
