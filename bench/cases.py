"""What is measured: optimizers, workloads, candidates. The package's table says which there are.

A candidate is a function of a case, its parameters and its gradients that returns a callable: one
step. To add one, write it here and name it in test_step.py's and report.py's lists of candidates.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastopt
from fastopt import _kernels, reference
from fastopt.__main__ import facts as fastopt_facts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from table import EFFECTIVE, OPTIMIZERS, Variant, accepted, another_value, options_of, plain_values
from tape import as_loop, record, replay, trace

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]
try:
    import numba
except ImportError:
    numba = None

Array: TypeAlias = npt.NDArray[Any]
Step: TypeAlias = Callable[[], object]
Make: TypeAlias = "Callable[[Case, list[Array], list[Array]], Step]"

WORKLOADS: dict[str, list[tuple[int, ...]]] = {
    "1 x 1,000": [(1000,)],
    "MLP 784-200-10": [(784, 200), (200,), (200, 10), (10,)],
    "1,000 x 64": [(64,)] * 1000,
    "1 x 2^16": [(2**16,)],
    "1 x 2^20": [(2**20,)],
    "1 x 2^24": [(2**24,)],
}
"""The shapes of the parameters."""


class Unavailable(Exception):
    """Why a candidate cannot run a case."""


def facts() -> dict[str, str]:
    """What a result depends on."""
    found = {name: value for name, value in fastopt_facts().items() if name != "kernels"}
    if torch is not None:
        found["torch"] = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if numba is not None:
        found["numba"] = numba.__version__
    return found


# -- Cases -----------------------------------------------------------------------------------------


def kernels_of(cls: type[fastopt.Optimizer]) -> Iterator[Variant]:
    """For each kernel of a class the fewest changed options that choose it; the defaults first."""
    options = {name: EFFECTIVE.get(name, another_value(v)) for name, v in options_of(cls).items()}
    seen = set()
    for count in range(len(options) + 1):
        for names in itertools.combinations(options, count):
            variant = Variant(cls, {name: options[name] for name in names})
            if accepted(variant) and cls.subset(variant.hyper) not in seen:
                seen.add(cls.subset(variant.hyper))
                yield variant
        if len(seen) == 2 ** len(_kernels.TABLE[cls.kernel]["optional"]):
            return


def label(variant: Variant) -> str:
    return f"{variant.cls.__name__} {' '.join(variant.options)}".strip()


def all_kernels() -> list[Variant]:
    """Each kernel once, by the first class that runs it."""
    found = {(v.cls.kernel, v.cls.subset(v.hyper)): v for v in reversed(all_variants())}
    return list(reversed(found.values()))


def all_variants() -> list[Variant]:
    """Every class with its defaults, and its other kernels if they are not its base's."""
    return [
        variant
        for cls in OPTIMIZERS
        for variant in kernels_of(cls)
        if not variant.options or not any(c in OPTIMIZERS for c in cls.__mro__[1:])
    ]


@dataclass(frozen=True)
class Case:
    """One optimizer on one workload."""

    variant: Variant
    workload: str
    dtype: str = "float32"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return WORKLOADS[self.workload]

    @property
    def elements(self) -> int:
        return sum(map(prod, self.shapes))

    @property
    def state_count(self) -> int:
        return len(self.variant.cls.letters(self.variant.hyper))

    @property
    def bytes_moved(self) -> int:
        """The fewest possible: the gradient is read, parameter and states are read and written."""
        return self.elements * np.dtype(self.dtype).itemsize * (3 + 2 * self.state_count)

    def values(self, seed: int) -> list[Array]:
        """Normally distributed numbers in the workload's shapes."""
        arrays = [empty(shape, self.dtype) for shape in self.shapes]
        fill(arrays, seed)
        return arrays

    def states(self) -> list[list[Array | None]]:
        """For each parameter the row's STATE and OPTIONAL buffers, as they are at first."""
        row, h = _kernels.TABLE[self.variant.cls.kernel], self.variant.hyper
        first, needed = self.variant.cls.initial_states(h), self.variant.cls.letters(h)
        made: list[list[Array | None]] = []
        for shape in self.shapes:
            arrays = [
                empty(shape, self.dtype) if letter in needed else None
                for letter in (*row["state"], *row["optional"])
            ]
            for letter, array in zip((*row["state"], *row["optional"]), arrays, strict=True):
                if array is not None:
                    array[...] = first.get(letter, 0.0)
            made.append(arrays)
        return made

    def coefficients(self) -> Callable[[int], list[float]]:
        """Of a step t, counted from 1, the kernel's coefficients in the order of the table."""
        cls, h = self.variant.cls, self.variant.hyper
        names = _kernels.TABLE[cls.kernel]["scalars"]

        def at(t: int) -> list[float]:
            values = cls.scalars(h, h["lr"], t, 1.0)
            return [values[name] for name in names]

        return at


def empty(shape: tuple[int, ...], dtype: str) -> Array:
    """An array that lies as NumPy's usually do: at a multiple of 16 bytes and of no more."""
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    begin = (16 - memory.ctypes.data) % 64
    return memory[begin : begin + size].view(dtype).reshape(shape)


def fill(arrays: Sequence[Array], seed: int) -> None:
    """Puts normally distributed numbers into arrays: none is subnormal."""
    flat = _normals(sum(a.size for a in arrays), arrays[0].dtype.str, seed)
    ends = itertools.accumulate(a.size for a in arrays)
    for array, end in zip(arrays, ends, strict=True):
        array[...] = flat[end - array.size : end].reshape(array.shape)


_normals = lru_cache(maxsize=4)(plain_values)


# -- Candidates ------------------------------------------------------------------------------------


def fastopt_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    return partial(case.variant.make(params).step, grads)


def update(kernel: str, arrays: Sequence[Any], scalars: Sequence[Any]) -> None:
    """The NumPy twin."""
    p, g, *states = arrays
    reference.update(kernel, p, g, states, scalars)


def with_states(case: Case, params: list[Array], grads: list[Array]) -> list[list[Array | None]]:
    """For each parameter all arrays of its update."""
    return [[p, g, *s] for p, g, s in zip(params, grads, case.states(), strict=True)]


def numpy_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    coefficients = case.coefficients()
    kernel, clock, tensors = (
        case.variant.cls.kernel,
        itertools.count(1),
        with_states(case, params, grads),
    )

    def step() -> None:
        scalars = coefficients(next(clock))
        for arrays in tensors:
            update(kernel, arrays, scalars)

    return step


def numpy_out_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    kernel, clock = case.variant.cls.kernel, itertools.count(1)
    coefficients = case.coefficients()
    scalars = [np.array(value, case.dtype) for value in coefficients(1)]
    buffers: dict[tuple[int, ...], list[Array]] = {}
    tapes = [
        record(partial(update, kernel), arrays, scalars, buffers) for arrays in with_states(case, params, grads)
    ]

    def step() -> None:
        for array, value in zip(scalars, coefficients(next(clock)), strict=True):
            array[...] = value
        for tape in tapes:
            replay(tape)

    return step


def numba_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The formula as one loop over the elements, compiled by numba."""
    if numba is None:
        raise Unavailable("numba is not installed")
    clock, coefficients = itertools.count(1), case.coefficients()
    tensors = with_states(case, params, grads)
    scalars = [np.array(value, case.dtype) for value in coefficients(1)]
    tape = trace(partial(update, case.variant.cls.kernel), tensors[0], scalars)
    present = [[array for array in arrays if array is not None] for arrays in tensors]
    flat = [[array.ravel() for array in arrays] for arrays in present]
    scope: dict[str, Any] = {"np": np}
    exec(as_loop(tape, present[0], scalars), scope)
    loop = numba.njit(error_model="numpy")(scope["step"])
    as_scalar = np.dtype(case.dtype).type

    def step() -> None:
        scalars = [as_scalar(value) for value in coefficients(next(clock))]
        for arrays in flat:
            loop(*arrays, *scalars)

    return step


def torch_step(implementation: str, case: Case, params: list[Array], grads: list[Array]) -> Step:
    """implementation: "loop", "foreach", "fused", or "best": fused if it exists, else foreach."""
    if torch is None:
        raise Unavailable("torch is not installed")
    cls = getattr(torch.optim, case.variant.cls.__name__, None)
    options = inspect.signature(cls).parameters if cls else {}
    missing = [name for name in case.variant.options if name not in options]
    if cls is None or missing:
        raise Unavailable(f"torch has no {label(case.variant)}")
    if implementation == "best":
        implementation = "fused" if "fused" in options else "foreach"
    if implementation not in (*options, "loop"):
        raise Unavailable(f"torch has no {implementation} {cls.__name__}")
    flags = {name: name == implementation for name in ("foreach", "fused") if name in options}
    tensors = [torch.from_numpy(p).requires_grad_() for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    step: Step = cls(tensors, **case.variant.options, **flags).step
    return step


# -- Checks ----------------------------------------------------------------------------------------

EXACT = 0.0
TORCH_TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def checked(make: Make, case: Case, tolerance: float = EXACT) -> Step:
    """A candidate's step, after its first three were found to be those of the NumPy twin.

    Each of the three has gradients of its own. All later ones have those of the third.
    """
    params, grads = case.values(0), case.values(1)
    step = make(case, params, grads)
    expected, same_grads = case.values(0), case.values(1)
    states, coefficients = case.states(), case.coefficients()
    for t in (1, 2, 3):
        fill(grads, t)
        fill(same_grads, t)
        step()
        for p, g, s in zip(expected, same_grads, states, strict=True):
            reference.update(case.variant.cls.kernel, p, g, s, coefficients(t))
    for result, right in zip(params, expected, strict=True):
        if tolerance == EXACT:
            np.testing.assert_array_equal(result.view(np.uint8), right.view(np.uint8))
        else:
            np.testing.assert_allclose(result, right, rtol=tolerance, atol=tolerance)
    return step
