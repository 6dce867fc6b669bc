from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.algorithm import Algorithm, Array, Hyper
from fastopt.optimizer import Optimizer, Params
from fastopt.optimizers.adam import cautious_scale
from fastopt.options import Beta, NonNegative, Seed, StateDtype


class Lion(Optimizer):
    """Lion: steps of one length, in the direction of the sign of the momentum that leans to the new gradient.

    ::

        p = p * (1 - lr * weight_decay)
        u = beta1 * m + (1 - beta1) * g
        m = beta2 * m + (1 - beta2) * g
        p = p - lr * sign(u)

    The sign of 0 is 0. The paper advises an lr 3 to 10 times smaller than AdamW's, and a weight_decay larger by
    as much. Google's code, lion-pytorch, timm, optax and Keras compute the same; in optax the default of
    weight_decay is 1e-3.

    Source: Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu, Le 2023, arXiv:2302.06675.
    State: ``exp_avg``.

    Options:
    lr: the learning rate: the length of a step in every element (the paper's).
    betas: the weights of the old in u and in m (the paper's).
    weight_decay: p loses this part of itself, times lr, before the update (the paper's lambda).
    cautious: True: elements of sign(u) that are not the sign of g count as 0, and the others are divided by the part
        of the parameter's elements that they are, at least 1e-3; this reads g and m twice (timm's caution; Liang,
        Chen, Liu, Liu 2024, arXiv:2411.16085).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-4,
        betas: tuple[Beta, Beta] = (0.9, 0.99),
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        cautious: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(params, locals())

    class algorithm(Algorithm):
        formula = "lion"
        states = {"m": "exp_avg"}

        @staticmethod
        def decay(h: Hyper) -> tuple[float, float]:
            return 0.0, 1.0 - h["lr"] * h["weight_decay"]

        @staticmethod
        def optional_states(h: Hyper) -> set[str]:
            return {"cautious"} if h["cautious"] else set()

        @staticmethod
        def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
            beta1, beta2 = h["betas"]
            return beta1, 1.0 - beta1, beta2, 1.0 - beta2, h["lr"]

        @staticmethod
        def prepare(h: Hyper, t: Array, sums: dict[str, Array], numbers: dict[str, Array]) -> tuple[Any, ...]:
            return (cautious_scale(sums),)

        @staticmethod
        def twin(
            p: Array, g: Array, m: Array,
            beta1: Any, one_minus_beta1: Any, beta2: Any, one_minus_beta2: Any, lr: Any, scale: Any = None,
        ) -> tuple[Array] | None:  # fmt: skip
            u = beta1 * m + one_minus_beta1 * g
            m *= beta2
            m += one_minus_beta2 * g
            direction = np.sign(u)
            if scale is not None:
                kept = direction * g > 0
                direction = direction * np.where(kept, scale, 0)
            p -= lr * direction
            return None if scale is None else (kept,)
