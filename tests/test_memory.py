"""A steady-state step allocates nothing that stays, no call more than what it makes, and none writes to read-only."""

from __future__ import annotations

import gc
import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import table

import fastopt

STEPS = 800


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
        peaks = []
        for _ in range(5):
            tracemalloc.reset_peak()
            for _ in range(STEPS // 5):
                optimizer.step(grads)
            end, peak = tracemalloc.get_traced_memory()
            peaks.append(peak)
    finally:
        tracemalloc.stop()
    # numbers of rows and columns, with which Python computes
    vectors = 8 * sum(map(math.prod, table.states_of_shape(variant.cls, shape).values()))
    assert end - start < 16_000 + vectors  # what the choice of threads remembers; 24 bytes a step would show
    views = 500 * count if gradient.name == "bfloat16" else 0  # objects, without elements of their own
    # The choice of threads reads some files. The least of five, since another thread may take memory at the same time.
    assert min(peaks) - start < 40_000 + views + 5 * vectors, "a step makes temporaries"
    assert resident_bytes() - resident < 2_000_000


# -- Parameters that became read-only ----------------------------------------------------------------


def frozen(cls: Any, **options: Any) -> tuple[Any, list[Any], list[Any]]:
    """An optimizer after a step, with a parameter that has been made read-only since."""
    params, grads = [np.ones(3), np.ones((2, 2)), np.ones(4)], [np.ones(3), np.ones((2, 2)), np.ones(4)]
    optimizer = cls(params, **options)
    optimizer.step(grads)
    params[1].flags.writeable = False
    return optimizer, params, grads


@pytest.mark.parametrize("way", ["list", "dict", "bound", "handed over", "numpy"])
def test_a_parameter_that_became_read_only_is_refused(way: str) -> None:
    optimizer, params, grads = frozen(fastopt.Adam)
    if way == "numpy":
        fastopt.set_isa("numpy")
    if way == "bound":
        params[1].flags.writeable = True
        optimizer.bind(grads)
        params[1].flags.writeable = False
    calls: dict[str, Callable[[], object]] = {
        "dict": lambda: optimizer.step(dict(enumerate(grads))),
        "bound": lambda: optimizer.step(),
        "handed over": lambda: optimizer.update(params, grads),
    }
    call = calls.get(way, lambda: optimizer.step(grads))
    before = table.bits(optimizer, params)
    for _ in range(2):
        with pytest.raises(ValueError, match="parameter 1"):
            call()
        assert table.bits(optimizer, params) == before
    optimizer.step([grads[0], None, grads[2]])  # it is left alone
    params[1].flags.writeable = True
    if way == "bound":
        optimizer.bind(grads)
    call()
    assert [state["step"] for state in optimizer.state.values()] == [3, 2, 3]


def test_a_read_only_parameter_is_not_moved() -> None:
    optimizer, params, grads = frozen(fastopt.NAG)
    before = table.bits(optimizer, params)
    with pytest.raises(ValueError, match="parameter 1: the array is read-only"):
        optimizer.lookahead()
    assert table.bits(optimizer, params) == before
    params[1].flags.writeable = True
    optimizer.lookahead()
    params[1].flags.writeable = False
    before = table.bits(optimizer, params)
    with pytest.raises(ValueError, match="parameter 1: the array is read-only"):
        optimizer.step([grads[0], None, grads[2]])  # which would move it back
    assert table.bits(optimizer, params) == before


def test_a_function_refuses_what_became_read_only() -> None:
    arrays = [np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)]
    fastopt.functional.adam(*arrays, step=1)
    for k in (0, 2, 3):
        arrays[k].flags.writeable = False
        before = [a.tobytes() for a in arrays]
        with pytest.raises(ValueError, match="read-only"):
            fastopt.functional.adam(*arrays, step=2)
        assert [a.tobytes() for a in arrays] == before
        arrays[k].flags.writeable = True


# -- Peaks -------------------------------------------------------------------------------------------

ELEMENTS = 2**20


def peak_of(call: Callable[[], object]) -> int:
    """The most memory that a call has had at once, beyond what there was before."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_first_gradient_in_another_layout_costs_no_memory(dtype: str) -> None:
    for threads in 1, 2:
        fastopt.set_num_threads(threads)
        param, grad = np.ones((1024, 1024), np.float32), np.ones((1024, 1024), dtype)
        optimizer = fastopt.SGD([param], momentum=0.9)
        optimizer.step([grad])
        step = optimizer.step
        resident = resident_bytes()
        for other in grad.T, grad[::-1], grad[:, ::-1]:
            assert peak_of(lambda step=step, other=other: step([other])) < 50_000
        # a thread's scratch memory holds 16,384 elements, and NumPy does not count it
        assert resident_bytes() - resident < param.nbytes // 2


def two_groups(dtype: str = "float32") -> Any:
    params = [np.ones(ELEMENTS, np.float32) for _ in range(2)]
    optimizer = fastopt.Adam([{"params": [p]} for p in params], state_dtype=None if dtype == "float32" else dtype)
    optimizer.step([np.ones(ELEMENTS, np.float32) for _ in params])
    return optimizer


def test_load_state_dict_takes_no_memory() -> None:
    """States that stay are overwritten where they are."""
    optimizer = two_groups()
    saved = optimizer.state_dict()
    states = [
        id(state.base) for each in optimizer.state.values() for state in each.values() if state is not each["step"]
    ]
    assert peak_of(lambda: optimizer.load_state_dict(saved)) < 200_000
    for state in saved["state"].values():
        state.update({name: value.astype(np.float64) for name, value in state.items() if name != "step"})
    assert peak_of(lambda: optimizer.load_state_dict(saved)) < 200_000  # cast in pieces
    assert states == [
        id(state.base) for each in optimizer.state.values() for state in each.values() if state is not each["step"]
    ]


def test_add_param_group_takes_memory_for_what_is_new() -> None:
    optimizer = two_groups()
    small = np.ones(1000, np.float32)
    assert peak_of(lambda: optimizer.add_param_group({"params": [small]})) < 200_000


def test_an_edit_takes_memory_for_what_is_new() -> None:
    """Two moments stay, and one more array is made for one group: not three for both."""
    optimizer = two_groups()
    optimizer.param_groups[0]["amsgrad"] = True
    grads = [np.ones(ELEMENTS, np.float32) for _ in range(2)]
    assert peak_of(lambda: optimizer.step(grads)) < 1.1 * grads[0].nbytes


def test_a_state_dict_takes_memory_for_its_copies() -> None:
    optimizer = two_groups()
    assert peak_of(optimizer.state_dict) < 4.1 * 4 * ELEMENTS
