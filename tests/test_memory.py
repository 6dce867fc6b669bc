"""A steady-state step allocates nothing that stays, and nothing the size of a parameter."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import table

STEPS = 500


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


FEWEST = min(table.RUNS.values(), key=lambda v: len(table.states_in_use(v.cls, v.hyper)))
NARROW = min(table.FORMATS, key=lambda f: sum(table.dtype_of(dtype).itemsize for dtype in table.FORMATS[f]))
"""A format with as many 16-bit numbers as there are."""
FORMATS = [*((v, "float32") for v in table.BASES), *((table.LARGEST, f) for f in table.FORMATS)]
MANY, LARGE = (100, (8, 8)), (1, (100, 1000))
CASES = [(*of, *array, way) for of in FORMATS for array in (MANY, LARGE) for way in (False, True)]
FEW = [(table.LARGEST, "float32", *array, way) for array in (MANY, LARGE) for way in (False, True)]
FEW += [(FEWEST, "float32", *MANY, False), (table.LARGEST, NARROW, *MANY, True)]


@table.cases("variant, format, count, shape, transposed", CASES, FEW)
def test_memory_stays_flat(
    variant: table.Variant, format: str, count: int, shape: tuple[int, int], transposed: bool
) -> None:
    parameter, gradient = map(table.dtype_of, table.FORMATS[format][:2])
    params = [np.ones(shape, parameter) for _ in range(count)]
    grads = [np.full(shape[::-1], 0.1, gradient).T if transposed else np.full(shape, 0.1, gradient)]
    grads *= count
    optimizer = variant.stored_as(format).make(params)
    for _ in range(20):
        optimizer.step(grads)
    gc.collect()
    resident = resident_bytes()
    tracemalloc.start()
    try:
        optimizer.step(grads)
        start, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(STEPS):
            optimizer.step(grads)
        end, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert end - start < 10_000  # what the choice of threads remembers; 24 bytes a step would show
    views = 200 * count if gradient.name == "bfloat16" else 0  # objects, without elements of their own
    assert peak - start < 40_000 + views, "a step makes temporaries"  # the choice of threads reads some files
    assert resident_bytes() - resident < 2_000_000
