"""Compares a candidate's first steps with the NumPy twin, before anything is timed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache

import numpy as np

from fastopt.benchmark import internals
from fastopt.benchmark.candidates import Candidate, numpy_step, use_threads
from fastopt.benchmark.cases import PERIOD, Case, fill, pieces
from fastopt.benchmark.internals import Array, Step

STEPS = (1, 2, 3)
"""The steps that are compared. Each has gradients of its own; all later steps have those of the last."""

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
"""How far the result of three inexact steps may be from the twin in float64, absolute and relative."""


@lru_cache(maxsize=2)
def expected(case: Case, dtype: str) -> list[Array]:
    """The parameters after STEPS of the NumPy twin in a dtype, worked out piece by piece to save memory.

    Where an update takes numbers of its whole tensor, there are no pieces.
    """
    arrays, coefficients = [np.empty(shape, dtype) for shape in case.shapes], case.coefficients()
    if internals.needs_factors(case.cls, case.hyper):
        values = [np.empty_like(array) for array in arrays]
        step = numpy_step(replace(case, dtype=dtype), arrays, values)
        fill(arrays, 0)
        for t in STEPS:
            fill(values, t)
            step()
        return arrays
    grads = [pieces(arrays, t, dtype) for t in STEPS]
    for (p, values), *steps in zip(pieces(arrays, 0, dtype), *grads, strict=True):
        p[...] = values
        states = case.states(p.shape, dtype)
        for t, (_, g) in zip(STEPS, steps, strict=True):
            internals.twin_update(case.cls, case.hyper, [p, g, *states], coefficients(t))
    return arrays


def verified(candidate: Candidate, case: Case, params: list[Array], grads: list[Array]) -> Step:
    """A candidate's step, after its first steps were found to agree with the NumPy twin.

    A step whose library keeps arrays of its own has two methods: `put` copies the gradients into them, and
    `get` copies the parameters back. Where a library computes another form of the formula, the step's `form`
    is the case whose formula that is.
    """
    fill(params, 0)
    fill(grads, 1)
    step = candidate.make(case, params, grads)
    if not candidate.verify:
        return step
    for t, count in zip(STEPS, itertools.cycle(candidate.threads)):
        use_threads(count)
        fill(grads, t)
        getattr(step, "put", int)()
        step()
    getattr(step, "get", int)()
    form = getattr(step, "form", case)
    for result, right in zip(params, expected(form, case.dtype if candidate.exact else "float64"), strict=True):
        result, right = result.reshape(-1), right.reshape(-1)
        for begin in range(0, result.size, PERIOD):
            part = slice(begin, begin + PERIOD)
            if candidate.exact:
                np.testing.assert_array_equal(result[part].view(np.uint8), right[part].view(np.uint8))
            else:
                most = TOLERANCE[case.dtype]
                np.testing.assert_allclose(result[part], right[part], rtol=most, atol=most)
    return step
