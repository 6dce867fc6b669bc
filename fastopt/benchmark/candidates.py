"""The ways to compute a step that are compared: fastopt, NumPy, numba and torch."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

import fastopt
from fastopt.benchmark import internals
from fastopt.benchmark.cases import Case
from fastopt.benchmark.internals import CPUS, Array, Step
from fastopt.benchmark.tape import as_loop, record, replay, trace

MakeStep: TypeAlias = "Callable[[Case, list[Array], list[Array]], Step]"
"""Makes the step of a case, for parameters and gradients that the caller fills."""


class Unavailable(Exception):
    """Says why a candidate cannot run a case."""


def elementwise(case: Case) -> None:
    """Refuses optimizers whose step is more than a loop over the elements with numbers that are known before."""
    if internals.needs_factors(case.cls, case.hyper):
        raise Unavailable("optimizers with numbers of a whole tensor are not written as one loop")


def library(name: str) -> Any:
    """Imports a module that is not one of the package's dependencies."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name.partition('.')[0]} is not installed") from error


def fastopt_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    return partial(case.make(params).step, grads)


def numpy_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The NumPy twin, as one writes it by hand."""
    coefficients, clock = case.coefficients(), itertools.count(1)
    tensors = [internals.TwinStep(case.cls, case.hyper, arrays) for arrays in case.with_states(params, grads)]

    def step() -> None:
        t = next(clock)
        scalars = coefficients(t)
        for tensor in tensors:
            tensor(t, scalars)

    return step


def numpy_out_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The NumPy twin with its temporaries allocated beforehand."""
    elementwise(case)
    coefficients, clock = case.coefficients(), itertools.count(1)
    scalars = [np.array(value, case.dtype) for value in coefficients(1)]
    buffers: dict[tuple[int, ...], list[Array]] = {}
    update = partial(internals.twin_update, case.cls, case.hyper)
    tapes = [record(update, arrays, scalars, buffers) for arrays in case.with_states(params, grads)]

    def step() -> None:
        for array, value in zip(scalars, coefficients(next(clock)), strict=True):
            array[...] = value
        for tape in tapes:
            replay(tape)

    return step


def numba_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The NumPy twin as one loop over the elements, compiled by numba; parallel on more than one thread."""
    elementwise(case)
    numba = library("numba")
    coefficients, clock, as_scalar = case.coefficients(), itertools.count(1), np.dtype(case.dtype).type
    tensors = case.with_states(params, grads)
    scalars = [np.array(value, case.dtype) for value in coefficients(1)]
    tape = trace(partial(internals.twin_update, case.cls, case.hyper), tensors[0], scalars)
    present = [[array for array in arrays if array is not None] for arrays in tensors]
    flat = [[array.reshape(-1) for array in arrays] for arrays in present]
    scope: dict[str, Any] = {"np": np, "prange": numba.prange}
    exec(as_loop(tape, present[0], scalars), scope)
    loops = {
        parallel: numba.njit(scope["step"], error_model="numpy", parallel=parallel) for parallel in (False, True)
    }

    def step() -> None:
        scalars = [as_scalar(value) for value in coefficients(next(clock))]
        loop = loops[numba.get_num_threads() > 1]
        for arrays in flat:
            loop(*arrays, *scalars)

    return step


def torch_step(implementation: str, case: Case, params: list[Array], grads: list[Array]) -> Step:
    """implementation: "loop", "foreach", "fused", or "best": fused where torch has it, else foreach."""
    torch = library("torch")
    cls = getattr(torch.optim, case.cls.__name__, None)
    options = inspect.signature(cls).parameters if cls else {}
    if cls is None or not case.options.keys() <= options.keys():
        raise Unavailable(f"torch has no {case.label}")
    if implementation == "best":
        implementation = "fused" if "fused" in options else "foreach"
    if implementation not in (*options, "loop"):
        raise Unavailable(f"torch has no {implementation} {cls.__name__}")
    flags = {name: name == implementation for name in ("foreach", "fused") if name in options}
    if internals.has_numbers(case.cls):  # torch keeps them in its default dtype, and float32 would round them
        torch.set_default_dtype(torch.float64)
    tensors = [torch.from_numpy(p).requires_grad_() for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    step: Step = cls(tensors, **case.options, **flags).step
    return step


ONE_THREAD: tuple[int | None, ...] = (1,)
ONE_OR_ALL: tuple[int | None, ...] = tuple({1: None, CPUS: None})
"""The numbers of threads with which a candidate is measured."""


@dataclass(frozen=True)
class Candidate:
    """A way to compute a step, and how it is verified and measured."""

    make: MakeStep
    threads: tuple[int | None, ...] = ONE_OR_ALL
    exact: bool = False
    """Whether its result must have the bits of the NumPy twin in the same dtype."""
    verify: bool = True
    """Whether it computes a step at all; a measured limit does not."""
    largest: int = 2**62
    """The most elements it is measured with; larger cases take long and tell nothing new about it."""


NUMPY_LARGEST = 2**25

CANDIDATES = {
    "NumPy": Candidate(numpy_step, ONE_THREAD, exact=True, largest=NUMPY_LARGEST),
    "NumPy out=": Candidate(numpy_out_step, ONE_THREAD, exact=True, largest=NUMPY_LARGEST),
    "numba": Candidate(numba_step),
    "torch": Candidate(partial(torch_step, "loop"), largest=NUMPY_LARGEST),
    "torch foreach": Candidate(partial(torch_step, "foreach"), largest=NUMPY_LARGEST),
    "torch fused": Candidate(partial(torch_step, "fused")),
    "fastopt": Candidate(fastopt_step, exact=True),
}


def use_threads(count: int | None) -> None:
    """Sets the number of threads of every library; None: fastopt's own choice, and all CPUs for the others."""
    for name in ("torch", "numba", "numexpr"):
        if name in sys.modules:
            sys.modules[name].set_num_threads(count or CPUS)
    fastopt.set_num_threads(count)
