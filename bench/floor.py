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

import fastopt
from fastopt.benchmark import Case, Step, Unavailable
from fastopt.optimizer import Array

LINE, PAGE = 64, 4096
"""Bytes."""

FLAGS = {"avx512": ["-mavx512f", "-mprefer-vector-width=512"], "avx2": ["-mavx2"]}
"""The instruction set that fastopt uses; the loop is compiled where it runs."""

C_TYPES = {"float32": "float", "float64": "double"}


def compiled(source: Path, *flags: str) -> Any:
    """A C file as a library."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "library.so")
        command = [*os.environ.get("CC", "cc").split(), "-O3", "-shared", "-fPIC", *flags, source, "-o", library]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"{source.name} does not compile: {error}") from error
        return ctypes.CDLL(str(library))


@lru_cache
def streams(written: int, dtype: str, isa: str) -> Any:
    """The compiled loop over one stream that is read and some that are read and written."""
    each = " ".join(f"X({k})" for k in range(written))
    flags = (f"-DFOR_EACH_WRITTEN(X)={each}", f"-DT={C_TYPES[dtype]}", *FLAGS.get(isa, []))
    return compiled(Path(__file__).with_suffix(".c"), "-fopenmp", *flags).streams


def floor_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The bytes of a step, however many arrays it has, as one flat array for each stream."""
    del params, grads
    written = 1 + case.state_count
    # the best that addresses can be: whole cache lines, and spread over the page, because a load
    # waits for a store to the same address modulo a page
    arrays = []
    for k in range(1 + written):
        memory = np.ones(case.elements + PAGE, case.dtype)
        offset = PAGE * k // (1 + written) // LINE * LINE
        begin = (offset - memory.ctypes.data) % PAGE // memory.itemsize
        arrays.append(memory[begin : begin + case.elements])
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
    loop = partial(streams(written, case.dtype, fastopt.get_isa()), ctypes.c_size_t(case.elements), *pointers)
    return lambda: loop(fastopt.get_num_threads())
