"""Everything that benchmarks use of fastopt beside its public functions.

One place, so that a change of the package's inside changes one file of the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastopt
from fastopt import _kernels, optimizers, reference, threads
from fastopt.__main__ import facts
from fastopt.choice import Choices

__all__ = ["facts"]

Array: TypeAlias = npt.NDArray[Any]
Hyper: TypeAlias = dict[str, Any]
Step: TypeAlias = Callable[[], object]
OptimizerClass: TypeAlias = type[fastopt.Optimizer]

OPTIMIZERS: list[OptimizerClass] = [getattr(optimizers, name) for name in optimizers.__all__]
CPUS = threads.available_cpus()
COMPILER: str = _kernels.COMPILER
OPENMP: int = _kernels.OPENMP


def formula_of(cls: OptimizerClass) -> str:
    """The row of the table of formulas that an optimizer runs."""
    return cls.kernel


def hyper_of(cls: OptimizerClass, options: Hyper) -> Hyper:
    """All hyper-parameters: the class's defaults and the options that differ from them."""
    return cls.defaults_of() | options


def state_letters(cls: OptimizerClass, hyper: Hyper) -> list[str]:
    """The names, in the formula, of the state buffers that these hyper-parameters need."""
    return cls.letters(hyper)


def optional_states_in_use(cls: OptimizerClass, hyper: Hyper) -> int:
    """The optional state buffers that these hyper-parameters need, as bits."""
    return cls.subset(hyper)


def number_of_kernels(cls: OptimizerClass) -> int:
    """How many kernels an optimizer has: one for each subset of its optional state buffers."""
    return 1 << len(_kernels.TABLE[formula_of(cls)]["optional"])


def initial_states(cls: OptimizerClass, hyper: Hyper) -> dict[str, float | None]:
    """For each state buffer of the row, in its order, its first value; None if it is not in use."""
    row = _kernels.TABLE[formula_of(cls)]
    first = cls.initial_states(hyper)
    needed = state_letters(cls, hyper)
    return {
        letter: first.get(letter, 0.0) if letter in needed else None
        for letter in (*row["state"], *row["optional"])
    }


def coefficients_of(cls: OptimizerClass, hyper: Hyper) -> Callable[[int], tuple[float, ...]]:
    """A function of the step, counted from 1, that returns the kernel's coefficients in the row's order."""
    return cls.group(hyper, 0).scalars


def twin_update(cls: OptimizerClass, arrays: Sequence[Any], scalars: Sequence[Any]) -> None:
    """One step of the NumPy twin. arrays: parameter, gradient, then the row's state buffers (None if unused)."""
    param, grad, *states = arrays
    reference.update(formula_of(cls), param, grad, states, scalars)


def kernel_call(
    cls: OptimizerClass, hyper: Hyper, params: list[Array], grads: list[Array], states: list[dict[str, Array]]
) -> Step:
    """A function that runs the first step's kernel on these arrays, with next to nothing of Python around it."""
    count = len(params)
    steps = np.zeros(count, np.int64)
    plan = _kernels.Plan(formula_of(cls), params, list(range(count)), [0] * count, states, steps)
    coefficients = cls.coefficients(hyper, hyper["lr"], 1)
    subset = optional_states_in_use(cls, hyper)
    groups = [_kernels.Group(lambda *_: coefficients, hyper, hyper["lr"], subset, 0, 1.0, 0.0, 0.0)]
    plan.bind(grads)
    return lambda: plan.step(None, 1.0, groups, Choices(), None)


def threads_in_use(optimizer: fastopt.Optimizer) -> int:
    """The number of threads that an optimizer has chosen for its steps."""
    return max((choice.count for choice in optimizer._choices.by_size.values()), default=1)


def cython_version() -> str:
    """The version of Cython that built the extension."""
    return type(_kernels.bias_correction).__module__.removeprefix("_cython_").replace("_", ".")
