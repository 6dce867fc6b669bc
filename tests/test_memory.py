"""A steady-state step allocates nothing that stays, and nothing the size of a parameter."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import table

STEPS = 1000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("variant", table.BASES, ids=str)
@pytest.mark.parametrize(("count", "shape"), [(300, (8, 8)), (1, (100, 1000))])
@pytest.mark.parametrize("transposed", [False, True])
def test_memory_stays_flat(variant: table.Variant, count: int, shape: tuple[int, int], transposed: bool) -> None:
    params = [np.ones(shape, np.float32) for _ in range(count)]
    grads = [np.full(shape[::-1], 0.1, np.float32).T if transposed else np.full(shape, 0.1, np.float32)]
    grads *= count
    optimizer = variant.make(params)
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
    assert peak - start < 40_000, "a step makes temporaries"  # the choice of threads reads some files
    assert resident_bytes() - resident < 2_000_000
