"""Adam with numbers stored in 16 bits, beside torch fused and DeepSpeed in float32."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from cases import adam, case
from peers import CANDIDATES
from table import FORMATS, dtype_of

import fastopt
from fastopt.benchmark.candidates import ONE_OR_ALL, Unavailable, use_threads
from fastopt.benchmark.cases import allocate, fill
from fastopt.benchmark.internals import Array, Step
from fastopt.benchmark.timing import Column, measure
from fastopt.benchmark.verify import STEPS, verified

SHOWN = {
    "float32": "float32",
    "bfloat16 state": "float32_float32_bfloat16",
    "bfloat16 state and gradients": "float32_bfloat16_bfloat16",
    "bfloat16 throughout": "bfloat16_bfloat16_bfloat16",
}
"""Formats of fastopt, by their names on the page."""

OTHERS = ("torch fused", "DeepSpeed")

ENDS = 2**18
"""How many elements at either end of an array are compared with the NumPy twin."""


def bytes_moved(format: str) -> int:
    """Bytes an element moves: the gradient is read, parameter and states are read and written."""
    parameter, gradient, states = (dtype_of(name).itemsize for name in FORMATS[format])
    one = case(adam(), "1 x 64")
    return 2 * parameter + gradient + 2 * one.state_count * states


def array(size: int, dtype: str, seed: int) -> Array:
    filled = allocate((size,), dtype)
    fill([filled], seed)
    return filled


def format_step(format: str, size: int) -> Step:
    """fastopt's step, after both ends of the array were found to agree with the NumPy twin."""
    parameter, gradient, _ = FORMATS[format]
    param, grad = array(size, parameter, 0), array(size, gradient, 1)
    variant = adam().stored_as(format)
    optimizer = variant.make([param])
    half = min(size // 2, ENDS)
    ends = [slice(0, half), slice(size - half, size)]
    # Random bits depend on an element's number, so the twin has the elements in between too, without a gradient.
    between = np.empty(size - 2 * half, param.dtype)
    first, last = (param[end].copy() for end in ends)
    twin = variant.make([first, between, last])
    for _, count in zip(STEPS, cycle(ONE_OR_ALL), strict=False):
        use_threads(count)
        optimizer.step([grad])
        fastopt.set_isa("numpy")
        twin.step([grad[ends[0]], None, grad[ends[1]]])
        fastopt.set_isa(None)
    for end, p, k in zip(ends, (first, last), (0, 2), strict=True):
        states = [(optimizer.state[0][name], x) for name, x in twin.state[k].items() if name != "step"]
        for whole, part in [(param, p), *states]:
            assert whole[end].tobytes() == part.tobytes(), f"{format}: not the bits of the NumPy twin"
    return partial(optimizer.step, [grad])


def measured_formats(workload: str, seconds: float) -> dict[str, Any]:
    """The times of every format, and of other libraries in float32."""
    one = case(adam(), workload)
    steps: dict[Column, Step] = {}
    for name, format in SHOWN.items():
        steps |= dict.fromkeys(((name, count) for count in ONE_OR_ALL), format_step(format, one.elements))
    reasons = {}
    for name in OTHERS:
        try:
            step = verified(CANDIDATES[name], one, one.arrays(), one.arrays())
        except Unavailable as reason:
            reasons[name] = str(reason)
        else:
            steps |= dict.fromkeys(((name, count) for count in ONE_OR_ALL), step)
    timings = measure(steps, lambda column: use_threads(column[1]), seconds)
    return {
        "workload": workload,
        "elements": one.elements,
        "bytes": {name: bytes_moved(format) for name, format in SHOWN.items()},
        "times": [[name, count, t.median, t.spread] for (name, count), t in timings.items()],
        "reasons": reasons,
    }
