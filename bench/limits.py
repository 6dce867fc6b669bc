"""What no step can go below: the floor, the memory's limit, and the divider, the processor's."""

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
from fastopt.benchmark import Case, Step, Unavailable, update
from fastopt.optimizer import Array
from fastopt.tape import trace

LINE, PAGE = 64, 4096
"""Bytes."""

ISA_FLAGS = {"avx512": ["-mavx512f", "-mprefer-vector-width=512"], "avx2": ["-mavx2"]}
"""The instruction set that fastopt uses; the loops are compiled where they run."""

FLAGS = ["-fopenmp", "-fno-math-errno", "-fno-trapping-math"]

C_TYPES = {"float32": ("float", "__builtin_sqrtf"), "float64": ("double", "__builtin_sqrt")}


def compiled(source: Path, *flags: str) -> Any:
    """A C file as a library."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "library.so")
        command = [
            *os.environ.get("CC", "cc").split(),
            "-O3",
            "-shared",
            "-fPIC",
            *flags,
            source,
            "-lm",
            "-o",
            library,
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"{source.name} does not compile: {error}") from error
        return ctypes.CDLL(str(library))


@lru_cache
def loops(written: int, roots: int, quotients: int, dtype: str, isa: str) -> Any:
    """limits.c, for a number of streams that are written, and of roots and quotients an element."""
    each = " ".join(f"X({k})" for k in range(written))
    kind, root = C_TYPES[dtype]
    macros = {"FOR_EACH_WRITTEN(X)": each, "T": kind, "SQRT": root, "ROOTS": roots, "QUOTIENTS": quotients}
    flags = [f"-D{name}={value}" for name, value in macros.items()]
    return compiled(Path(__file__).with_suffix(".c"), *flags, *FLAGS, *ISA_FLAGS.get(isa, []))


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
    streams = loops(written, 0, 0, case.dtype, fastopt.get_isa()).streams
    loop = partial(streams, ctypes.c_size_t(case.elements), *pointers)
    return lambda: loop(fastopt.get_num_threads())


def divisions(case: Case) -> tuple[int, int]:
    """How many roots and quotients the formula takes for each element: those of the NumPy twin."""
    arrays = [np.ones(1, case.dtype), np.ones(1, case.dtype), *case.states((1,), case.dtype)]
    scalars = [np.array(value, case.dtype) for value in case.coefficients()(1)]
    names = [ufunc.__name__ for ufunc, _, _ in trace(partial(update, case.cls.kernel), arrays, scalars)]
    return names.count("sqrt"), names.count("divide")


def divider_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """The roots and quotients of a step, without its memory."""
    del params, grads
    roots, quotients = divisions(case)
    if not roots + quotients:
        raise Unavailable(f"{case.label} takes no root and no quotient")
    divider = loops(1, roots, quotients, case.dtype, fastopt.get_isa()).divider
    size = ctypes.c_size_t(case.elements)
    return lambda: divider(size, fastopt.get_num_threads())
