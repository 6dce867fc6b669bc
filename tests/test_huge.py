"""An array of more than 2^31 elements: 8.6 GB, so not part of ``make test``. Run it alone:

.venv/bin/pytest -m huge tests
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest
from table import Array

import fastopt

SIZE = 2**31 + 2**20 + 12_345
PERIOD = 16_381 * mmap.PAGESIZE // 4
"""Elements after which the gradient is the same again: whole pages, an odd number of them."""


def available_bytes() -> int:
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


def repeated(pattern: Array, size: int) -> Array:
    """``size`` elements of the pattern over and over, in the memory of one pattern: a file mapped many times."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    count = -(-size * pattern.itemsize // pattern.nbytes)
    whole = mmap.mmap(-1, count * pattern.nbytes, prot=mmap.PROT_READ)  # the addresses; no memory yet
    view = np.frombuffer(whole, pattern.dtype)
    file = os.memfd_create("pattern")
    try:
        os.write(file, pattern.tobytes())
        for k in range(count):
            place = view.ctypes.data + k * pattern.nbytes
            fixed = mmap.MAP_SHARED | 0x10  # MAP_FIXED
            assert libc.mmap(place, pattern.nbytes, mmap.PROT_READ, fixed, file, 0) == place
    finally:
        os.close(file)
    return view[:size]


@pytest.mark.huge
@pytest.mark.skipif(available_bytes() < 4 * SIZE + 2**31, reason="needs 11 GB of memory")
def test_more_than_2_to_the_31_elements() -> None:
    pattern = np.random.default_rng(0).standard_normal(PERIOD).astype(np.float32)
    grad = repeated(pattern, SIZE)
    param = np.zeros(SIZE, np.float32)
    optimizer = fastopt.SGD([param], lr=0.5)
    expected = np.zeros(PERIOD, np.float32)
    for threads in 1, 2:
        fastopt.set_num_threads(threads)
        optimizer.step([grad])
        expected -= np.float32(0.5) * pattern
        for begin in range(0, SIZE, PERIOD):
            block = param[begin : begin + PERIOD]
            assert np.array_equal(block, expected[: block.size]), f"{threads} threads, elements from {begin}"
    for place in 0, 2**30, 2**31 - 1, 2**31, 2**31 + 1, SIZE - 1:
        assert param[place] == expected[place % PERIOD] != 0
