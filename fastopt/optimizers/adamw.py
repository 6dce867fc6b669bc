from __future__ import annotations

from fastopt.optimizer import Optimizer, Params
from fastopt.optimizers.adam import Adam
from fastopt.options import Beta, EpsHat, Epsilon, NonNegative, Seed, StateDtype


class AdamW(Adam):
    """`Adam` with decoupled weight decay: p = p * (1 - lr * weight_decay) before the update.

    Source: Loshchilov, Hutter 2017, arXiv:1711.05101. State: as `Adam`.

    Options:
    weight_decay: p loses this part of itself, times lr, before the update (torch's).
    decoupled_weight_decay: False: g + weight_decay * p takes the place of g instead, as in `Adam` (torch's).
    """

    def __init__(
        self,
        params: Params | None = None,
        lr: NonNegative = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: NonNegative = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        l1: NonNegative = 0.0,
        eps_root: Epsilon = 0.0,
        eps_hat: EpsHat = 0.0,
        bias_correction: bool = True,
        decoupled_weight_decay: bool = True,
        cautious: bool = False,
        state_dtype: StateDtype = None,
        seed: Seed = 0,
    ) -> None:
        Optimizer.__init__(self, params, locals())
