"""Schedules: how a learning rate, a momentum or a weight decay changes over a run.

    lr = fastopt.schedules.warmup(fastopt.schedules.cosine(1e-3, 9_000), 1_000)
    opt = fastopt.AdamW(params, lr=lr)

Each function makes a `Schedule`: called with the step, 0 for the first one, it returns the number for that step.
It has no state, so that a run is resumed by the step count alone; `ReduceLROnPlateau`, which follows a measure,
has. docs/schedules.md leads here from the names of other libraries.
"""

from fastopt.schedules.combined import chained, sequential, warmup, warmup_stable_decay
from fastopt.schedules.cycles import (
    cosine_annealing,
    cosine_warm_restarts,
    cyclic,
    cyclic_momentum,
    one_cycle,
    one_cycle_momentum,
)
from fastopt.schedules.decays import (
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    inverse_time,
    lambda_,
    linear,
    multi_step,
    multiplicative,
    polynomial,
    step,
)
from fastopt.schedules.plateau import ReduceLROnPlateau
from fastopt.schedules.schedule import Schedule

__all__ = [
    "ReduceLROnPlateau",
    "Schedule",
    "chained",
    "constant",
    "cosine",
    "cosine_annealing",
    "cosine_warm_restarts",
    "cyclic",
    "cyclic_momentum",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "lambda_",
    "linear",
    "multi_step",
    "multiplicative",
    "one_cycle",
    "one_cycle_momentum",
    "polynomial",
    "sequential",
    "step",
    "warmup",
    "warmup_stable_decay",
]
