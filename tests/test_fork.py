"""A child of a process that has made parallel steps makes its own, soon and with the same bits."""

from __future__ import annotations

import ctypes
import multiprocessing
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
import table
from own_process import fork, own_process, run

import fastopt

SMALL, LARGE = 100, 200_000  # below and above what is worth a second thread


def trained(size: int) -> int:
    """A digest of two parameters after steps that are parallel where they can be."""
    fastopt.set_num_threads(2)
    params = [np.ones(size, np.float32) for _ in range(2)]
    optimizer = fastopt.Adam(params, lr=0.1)
    for step in range(3):
        optimizer.step([np.full(size, 0.5 + step, np.float32) for _ in params])
    return zlib.crc32(b"".join(p.tobytes() for p in params))


@pytest.mark.parametrize("source", ["main thread", "another thread"])
@own_process
def test_a_child_and_a_child_of_it(source: str) -> None:
    expected = trained(LARGE), trained(SMALL)

    def work() -> None:
        assert (trained(LARGE), trained(SMALL)) == expected

    def work_and_fork() -> None:
        work()
        assert fork(work) == 0
        work()

    ends: list[int | None] = []
    if source == "main thread":
        ends.append(fork(work_and_fork))
    else:
        thread = threading.Thread(target=lambda: ends.append(fork(work_and_fork)))
        thread.start()
        thread.join()
    assert ends == [0]
    work()


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@own_process
def test_a_pool(method: str) -> None:
    sizes = [LARGE, SMALL] * 3
    expected = [trained(size) for size in sizes]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(trained, sizes).get(timeout=50) == expected
    assert [trained(size) for size in sizes] == expected


@own_process
def test_another_program() -> None:
    expected = trained(LARGE)
    code = f"import test_fork; print(test_fork.trained({LARGE}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=50)
    assert int(done.stdout) == expected == trained(LARGE)


@own_process
def test_forks_while_other_threads_step() -> None:
    expected = trained(LARGE), trained(SMALL)
    size = 2**19
    grads = [np.full(size, 0.5, np.float32)]
    optimizers = [fastopt.SGD([np.zeros(size, np.float32)], momentum=0.9) for _ in range(4)]
    *stepped, idle, twin_of_idle = optimizers
    for optimizer in idle, twin_of_idle:
        optimizer.step(grads)
    twin_of_idle.step(grads)
    bits = [[o.param_groups[0]["params"][0], o.state[0]["momentum_buffer"]] for o in optimizers]
    stop = threading.Event()

    def keep_stepping(optimizer: fastopt.Optimizer) -> None:
        while not stop.is_set():
            optimizer.step(grads)

    def child() -> int:
        assert (trained(LARGE), trained(SMALL)) == expected
        idle.step(grads)
        assert np.array_equal(bits[2], bits[3])
        refused = 0
        for optimizer in stepped:
            try:
                optimizer.step(grads)
            except RuntimeError as error:
                assert "process was forked" in str(error)
                refused = 3
        return refused

    threads = [threading.Thread(target=keep_stepping, args=[o]) for o in stepped]
    for thread in threads:
        thread.start()
    ends = [fork(child) for _ in range(12)]
    stop.set()
    for thread in threads:
        thread.join()
    assert set(ends) <= {0, 3}, ends
    assert 3 in ends, "no fork fell into a step"
    fastopt.set_num_threads(1)
    for optimizer, arrays in zip(stepped, bits, strict=False):
        serial = fastopt.SGD([np.zeros(size, np.float32)], momentum=0.9)
        for _ in range(optimizer.state[0]["step"]):
            serial.step(grads)
        assert np.array_equal(arrays, [serial.param_groups[0]["params"][0], serial.state[0]["momentum_buffer"]])


@pytest.mark.skipif(not table.OPENMP, reason="built without OpenMP")
def test_a_child_is_the_first_to_import() -> None:
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("there is no libgomp.so.1")
    run(f"""
import ctypes, sys
from own_process import fork

def child():
    import test_fork
    test_fork.trained({LARGE})

team = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
ctypes.CDLL("libgomp.so.1").GOMP_parallel(team, None, 2, 0)  # as another library would
assert "fastopt" not in sys.modules
assert fork(child) == 0
""")
