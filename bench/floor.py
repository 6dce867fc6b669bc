"""A loop over the streams of a step without its arithmetic: what the memory alone allows."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import Array, Case, Step, Unavailable

import fastopt

LINE, PAGE = 64, 4096
"""Bytes."""

FLAGS = {"avx512": ["-mavx512f", "-mprefer-vector-width=512"], "avx2": ["-mavx2"]}
"""The instruction set that fastopt uses; the loop is compiled where it runs."""


@lru_cache
def streams(written: int) -> Any:
    """The compiled loop over one stream that is read and some that are read and written."""
    each = " ".join(f"X({k})" for k in range(written))
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "floor.so")
        command = [
            *os.environ.get("CC", "cc").split(),
            *("-O3", "-fopenmp", "-shared", "-fPIC", *FLAGS.get(fastopt.get_isa(), [])),
            *(f"-DFOR_EACH_WRITTEN(X)={each}", "-o", library, Path(__file__).with_suffix(".c")),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"the floor does not compile: {error}") from error
        return ctypes.CDLL(str(library)).streams


def floor_step(threads: int, case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The bytes of a step, however many arrays it has, as one flat array for each stream."""
    del params, grads
    if case.dtype != "float32":
        raise Unavailable("the floor is for float32")
    written = 1 + case.state_count
    # the best that addresses can be: whole cache lines, and spread over the page, because a load
    # waits for a store to the same address modulo a page
    arrays = []
    for k in range(1 + written):
        memory = np.ones(case.elements + PAGE, np.float32)
        offset = PAGE * k // (1 + written) // LINE * LINE
        begin = (offset - memory.ctypes.data) % PAGE // memory.itemsize
        arrays.append(memory[begin : begin + case.elements])
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
    return partial(streams(written), threads, ctypes.c_size_t(case.elements), *pointers)
