"""No trace in the process: what an import and steps leave as they found it, for NumPy and for other libraries.

Nothing here imports fastopt outside a function: most tests begin before it is imported.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from own_process import own_process, run

SMALL, LARGE = 100, 200_000  # below and above what is worth a second thread


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def step(size: int, threads: int) -> bytes:
    """The parameter after steps on numbers of which some are subnormal."""
    import fastopt

    fastopt.set_num_threads(threads)
    params = [np.linspace(-1e-38, 1e-38, size, dtype=np.float32)]
    grads = [np.linspace(1e-38, -2e-38, size, dtype=np.float32)]
    optimizer = fastopt.SGD(params, lr=0.1, momentum=0.5)
    for _ in range(3):
        optimizer.step(grads)
    return params[0].tobytes()


def in_a_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


# -- Threads and time ------------------------------------------------------------------------------


@own_process
def test_import_starts_no_thread() -> None:
    before = count_threads()
    importlib.import_module("fastopt")
    assert count_threads() == before


@own_process
def test_a_small_step_starts_no_thread() -> None:
    before = count_threads()
    step(SMALL, 4)
    assert count_threads() == before


@own_process
def test_a_large_step_starts_what_was_asked_for() -> None:
    before = count_threads()
    step(LARGE, 3)
    fastopt = importlib.import_module("fastopt")
    assert count_threads() == before + (2 if fastopt._kernels.OPENMP else 0)


def test_import_is_quick() -> None:
    """By the processor's time, which other work does not count into, and in the best of some runs."""
    code = """
import time
start = time.process_time()
import numpy
between = time.process_time()
import fastopt
print(between - start, time.process_time() - between)
"""
    found = []
    for _ in range(30):
        # with bytecode, which an installation has
        numpys, ours = map(float, run(code, environment={"PYTHONDONTWRITEBYTECODE": ""}).split())
        if ours < max(0.03, 0.4 * numpys):
            return
        found.append(ours)
    pytest.fail(f"it takes {1000 * min(found):.1f} ms beyond that of NumPy")


# -- Settings --------------------------------------------------------------------------------------


def floating_point_mode() -> bytes:
    """The control registers, without the flags that arithmetic raises."""
    registers = ctypes.create_string_buffer(256)
    assert ctypes.CDLL(None).fegetenv(registers) == 0
    if platform.machine() == "x86_64":
        mxcsr = int.from_bytes(registers.raw[28:32], "little")
        return registers.raw[:2] + (mxcsr & ~0x3F).to_bytes(4, "little")  # the x87's control word first
    if platform.machine() == "aarch64":
        return registers.raw[:4]
    return b""


def settings() -> dict[str, Any]:
    """What a thread would notice."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smallest = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float64).smallest_subnormal
    assert smallest[0] > 0
    assert smallest[1] > 0
    assert np.float32(1e-38) * np.float32(0.5) > 0  # not flushed to zero
    return {
        "floating-point mode": floating_point_mode(),
        "NumPy's errors": np.geterr(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
    }


def pools() -> dict[str, int]:
    """How many threads each library of a thread pool would use."""
    import threadpoolctl

    return {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}


@own_process
def test_settings_stay_in_every_thread() -> None:
    before = settings()
    old_thread_asks, old_thread_answers = threading.Event(), []

    def wait_and_look() -> None:
        old_thread_asks.wait()
        old_thread_answers.append(settings())

    old_thread = threading.Thread(target=wait_and_look, daemon=True)
    old_thread.start()
    importlib.import_module("fastopt")
    assert settings() == before == in_a_thread(settings)
    serial = step(LARGE, 1)
    assert serial != bytes(len(serial))
    for threads in 1, 2, 3:
        for size in SMALL, LARGE:
            for call in (lambda work: work()), in_a_thread:
                bits = call(lambda size=size, threads=threads: step(size, threads))
                assert size == SMALL or bits == serial
                assert settings() == before == in_a_thread(settings)
    fastopt = importlib.import_module("fastopt")
    fastopt.set_flush_denormal(True)
    for isa in fastopt.get_isa(), "numpy":
        fastopt.set_isa(isa)
        assert step(LARGE, 2) != serial
        assert settings() == before == in_a_thread(settings)
    old_thread_asks.set()
    old_thread.join()
    assert old_thread_answers == [before]


@pytest.mark.parametrize("limit", ["", "3"])
def test_other_pools_keep_their_threads(limit: str) -> None:
    environment = {"OMP_NUM_THREADS": limit} if limit else {}
    run(f"import test_process; test_process.look_at_pools({limit!r})", environment=environment)


def look_at_pools(limit: str) -> None:
    np.ones((100, 100)) @ np.ones((100, 100))
    blas = pools()
    assert blas
    fastopt = importlib.import_module("fastopt")
    imported = pools()
    assert blas.items() <= imported.items()
    openmp = imported.keys() - blas.keys()
    assert bool(openmp) == bool(fastopt._kernels.OPENMP)
    if limit:
        assert {imported[path] for path in openmp} <= {int(limit)}
    in_thread = in_a_thread(pools)
    for threads in 1, 2, 4:
        for size in SMALL, LARGE:
            step(size, threads)
            in_a_thread(lambda size=size, threads=threads: step(size, threads))
            assert pools() == imported
            assert in_a_thread(pools) == in_thread


# -- Neighbours ------------------------------------------------------------------------------------


def work_of_torch() -> Callable[[], object]:
    import torch

    torch.set_num_threads(2)
    a = torch.linspace(0, 1, 2**21)
    return lambda: (float((a * 2 + 1).sum()), torch.get_num_threads())


def work_of_sklearn() -> Callable[[], object]:
    from sklearn.ensemble import HistGradientBoostingRegressor

    x = np.random.default_rng(0).standard_normal((3000, 4))
    return lambda: HistGradientBoostingRegressor(max_iter=3).fit(x, x.sum(1)).predict(x).tobytes()


def work_of_numba() -> Callable[[], object]:
    import numba

    @numba.njit(parallel=True)
    def double(a: Any) -> Any:
        b = np.empty_like(a)
        for i in numba.prange(a.size):
            b[i] = 2 * a[i]
        return b

    a = np.arange(2.0**18)
    return lambda: double(a).tobytes()


def work_of_fastopt() -> Callable[[], object]:
    return lambda: step(LARGE, 2)


NEIGHBOURS = ["torch", "sklearn", "numba"]
ORDERS = [order for neighbour in NEIGHBOURS for order in ((neighbour, "fastopt"), ("fastopt", neighbour))] + [
    (*NEIGHBOURS[:k], "fastopt", *NEIGHBOURS[k:]) for k in range(len(NEIGHBOURS) + 1)
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_parallel_work_in_turns(order: tuple[str, ...]) -> None:
    for library in order:
        if not importlib.util.find_spec(library):
            pytest.skip(f"{library} is not installed")
    for layer in ["omp", "workqueue"] if set(order) == {"fastopt", "numba"} else ["default"]:
        environment = {"NUMBA_THREADING_LAYER": layer}
        code = f"import test_process; test_process.work_in_turns({order!r})"
        run(code, seconds=120, environment=environment)


def work_in_turns(order: tuple[str, ...]) -> None:
    works = [globals()[f"work_of_{library}"]() for library in order]  # imports them in this order
    serial = step(LARGE, 1)
    first = [work() for work in works]
    assert first[order.index("fastopt")] == serial
    for _ in range(5):
        for work, expected in zip(works, first, strict=True):
            assert work() == expected
    assert in_a_thread(lambda: [work() for work in works]) == first
