"""Everything that benchmarks use of fastopt beside its public functions.

One place, so that a change of the package's inside changes one file of the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastopt
from fastopt import _kernels, machine, optimizers, reference
from fastopt.options import options_of

Array: TypeAlias = npt.NDArray[Any]
Hyper: TypeAlias = dict[str, Any]
Step: TypeAlias = Callable[[], object]
OptimizerClass: TypeAlias = type[fastopt.Optimizer]

ALL: list[OptimizerClass] = [getattr(optimizers, name) for name in optimizers.__all__]
OPTIMIZERS = [cls for cls in ALL if cls.algorithm.check_shape((3,)) is None and not cls.algorithm.sums_of_all]
"""Those that take parameters of any shape, each by itself."""
FLAT = (1,)
"""A shape with one axis, as the arrays have that are measured for every optimizer."""
CPUS = machine.available_cpus()
COMPILER: str = _kernels.COMPILER
OPENMP: int = _kernels.OPENMP


def facts() -> dict[str, str]:
    """The machine, and the build of fastopt."""
    return machine.facts()


def formula_of(cls: OptimizerClass) -> str:
    """The row of the table of formulas that an optimizer runs."""
    return cls.algorithm.formula


def hyper_of(cls: OptimizerClass, options: Hyper) -> Hyper:
    """All hyper-parameters: the class's defaults and the options that differ from them."""
    return {**{name: option.default for name, option in options_of(cls).items()}, **cls.algorithm.flags, **options}


def state_letters(cls: OptimizerClass, hyper: Hyper) -> list[str]:
    """The names, in the formula, of the state buffers that these hyper-parameters need."""
    return cls.algorithm.letters(hyper, FLAT)


def subset_of(cls: OptimizerClass, hyper: Hyper) -> int:
    """Which of its row's kernels runs: the optional state buffers, and the choice, as bits."""
    return cls.algorithm.subset(hyper)


def number_of_kernels(cls: OptimizerClass) -> int:
    """How many kernels an optimizer has: one for each subset of its optional state buffers and the choice."""
    row = _kernels.TABLE[formula_of(cls)]
    return 1 << len(row["optional"]) + len(row["choice"])


def initial_states(cls: OptimizerClass, hyper: Hyper) -> dict[str, float | None]:
    """For each state buffer of the row, in its order, its first value; None if it is not in use."""
    row = _kernels.TABLE[formula_of(cls)]
    first = cls.algorithm.initial_states(hyper)
    needed = state_letters(cls, hyper)
    letters = (*row["state"], *row["optional"])
    return {letter: first.get(letter, 0.0) if letter in needed else None for letter in letters}


def coefficients_of(cls: OptimizerClass, hyper: Hyper) -> Callable[[int], tuple[float, ...]]:
    """A function of the step, counted from 1, that returns the kernel's coefficients in the row's order.

    After the row's own come the factor of the gradient, weight decay and the factor of the parameter.
    """
    algorithm, sign = cls.algorithm, -1.0 if hyper["maximize"] else 1.0
    return lambda t: (*algorithm.coefficients(hyper, t), sign, *algorithm.decay(hyper))


def needs_factors(cls: OptimizerClass, hyper: Hyper) -> bool:
    """Whether the update of an element takes numbers that are made for its whole tensor."""
    return cls.algorithm.needs_factors(hyper)


def has_numbers(cls: OptimizerClass) -> bool:
    """Whether numbers of a whole tensor are part of the state."""
    return bool(_kernels.TABLE[formula_of(cls)]["numbers"])


def twin_update(cls: OptimizerClass, hyper: Hyper, arrays: Sequence[Any], scalars: Sequence[Any]) -> None:
    """What the NumPy twin computes of one tensor's elements, in place.

    arrays: parameter, gradient, then the row's state buffers (None if unused). scalars: the kernel's coefficients, then
    the row's FACTORS, which are 1 where they are left out and needed.
    """
    param, grad, *states = arrays
    row = _kernels.TABLE[formula_of(cls)]
    k = len(row["scalars"])
    own, factors = list(scalars[:k]), scalars[k:]
    if not factors and needs_factors(cls, hyper):
        factors = [1.0] * len(row["factors"])
    if cls.algorithm.adds_l1 and hyper.get("l1"):
        at = row["scalars"].index("grad_scale")
        grad = reference.with_l1(param, grad, own[at], hyper["l1"])
        own[at] = 1.0
    reference.update(cls.algorithm, param, grad, _with_columns(cls, states), own, factors)


def _with_columns(cls: OptimizerClass, states: Sequence[Any]) -> list[Any]:
    """State buffers, and None for each of the row's COLUMNS, which arrays with one axis do not have."""
    return [*states, *[None] * len(_kernels.TABLE[formula_of(cls)]["columns"])]


class TwinStep:
    """The steps of one tensor by the NumPy twin, with its sums and the numbers that are part of its state."""

    def __init__(self, cls: OptimizerClass, hyper: Hyper, arrays: Sequence[Any]) -> None:
        """arrays: as for `twin_update`."""
        self.cls, self.hyper, self.arrays = cls, hyper, arrays
        row, first = _kernels.TABLE[formula_of(cls)], cls.algorithm.initial_states(hyper)
        self.numbers = {name: np.array([first.get(name, 0.0)]) for name in row["numbers"]}
        self.sums: tuple[str, ...] = row["sums"]

    def __call__(self, t: int, scalars: Sequence[float]) -> None:
        """Makes step ``t``, 1 first; scalars: the kernel's coefficients."""
        factors: Sequence[float] = ()
        if needs_factors(self.cls, self.hyper):
            param, grad, *states = self.arrays
            algorithm, sums = self.cls.algorithm, {}
            if self.sums:
                first = algorithm.first_factors(self.hyper, np.array([t]), self.numbers)
                if first is None:
                    first = (1.0,) * len(_kernels.TABLE[formula_of(self.cls)]["factors"])
                own = [float(np.asarray(value).reshape(-1)[0]) for value in first]
                states = _with_columns(self.cls, states)
                totals = reference.total(reference.sums(algorithm, param, grad, states, scalars, own))
                sums = {name: np.array([value]) for name, value in zip(self.sums, totals, strict=True)}
            sums["elements"] = np.array([float(param.size)])
            found = algorithm.prepare(self.hyper, np.array([t]), sums, self.numbers)
            factors = [float(np.asarray(value).reshape(-1)[0]) for value in found]
        twin_update(self.cls, self.hyper, self.arrays, [*scalars, *factors])


def kernel_call(cls: OptimizerClass, options: Hyper, params: list[Array], grads: list[Array]) -> Step:
    """A function that steps on these arrays, with next to nothing of Python around the kernel."""
    optimizer = cls(params, **options)
    optimizer.bind(grads)
    return partial(optimizer._plan.step, optimizer, None)


def threads_in_use(optimizer: fastopt.Optimizer, elements: int) -> int:
    """The number of threads that an optimizer has chosen for steps of so many elements."""
    return optimizer._plan.work.tuners.threads(elements)  # type: ignore[no-any-return]


def cython_version() -> str:
    """The version of Cython that built the extension."""
    return type(_kernels.bias_correction).__module__.removeprefix("_cython_").replace("_", ".")
