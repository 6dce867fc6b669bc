"""Two limits that no step can beat on this machine, measured: memory bandwidth, and division and square root."""

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
from fastopt.benchmark import internals
from fastopt.benchmark.candidates import Unavailable
from fastopt.benchmark.cases import Case
from fastopt.benchmark.internals import Array, Step
from fastopt.benchmark.tape import trace

BANDWIDTH, DIVISION = "memory-bandwidth limit", "division-and-square-root limit"

LINE, PAGE = 64, 4096
"""Bytes."""

ISA_FLAGS = {"avx512": ["-mavx512f", "-mprefer-vector-width=512"], "avx2": ["-mavx2"]}
"""The compiler's flags for the instruction set that fastopt uses: the loops are compiled where they run."""

FLAGS = ["-fopenmp", "-fno-math-errno", "-fno-trapping-math"]

C_TYPES = {"float32": ("float", "__builtin_sqrtf"), "float64": ("double", "__builtin_sqrt")}


def compiled(source: Path, *flags: str) -> Any:
    """Compiles a C file and loads it."""
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
def loops(written: int, roots: int, divisions: int, dtype: str, isa: str) -> Any:
    """limits.c, compiled for a number of written arrays, and of square roots and divisions an element."""
    each = " ".join(f"X({k})" for k in range(written))
    kind, root = C_TYPES[dtype]
    macros = {"FOR_EACH_WRITTEN(X)": each, "T": kind, "SQRT": root, "ROOTS": roots, "DIVISIONS": divisions}
    flags = [f"-D{name}={value}" for name, value in macros.items()]
    return compiled(Path(__file__).with_suffix(".c"), *flags, *FLAGS, *ISA_FLAGS.get(isa, []))


def bandwidth_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """Reads and writes the bytes of a step without its arithmetic.

    All parameters, however many arrays they are, become one flat array here, and so do gradients and states.
    """
    del params, grads
    written = 1 + case.state_count
    # The best addresses: whole cache lines, spread over the page, because a load waits for a store to
    # the same address modulo a page.
    arrays = []
    for k in range(1 + written):
        memory = np.ones(case.elements + PAGE, case.dtype)
        offset = PAGE * k // (1 + written) // LINE * LINE
        begin = (offset - memory.ctypes.data) % PAGE // memory.itemsize
        arrays.append(memory[begin : begin + case.elements])
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
    bandwidth = loops(written, 0, 0, case.dtype, fastopt.get_isa()).bandwidth
    loop = partial(bandwidth, ctypes.c_size_t(case.elements), *pointers)
    return lambda: loop(fastopt.get_num_threads())


def count_divisions(case: Case) -> tuple[int, int]:
    """How many square roots and divisions the formula takes for each element, counted in the NumPy twin."""
    arrays = [np.ones(1, case.dtype), np.ones(1, case.dtype), *case.states((1,), case.dtype)]
    scalars = [np.array(value, case.dtype) for value in case.coefficients()(1)]
    names = [
        ufunc.__name__
        for ufunc, _, _ in trace(partial(internals.twin_update, case.cls, case.hyper), arrays, scalars)
    ]
    return names.count("sqrt"), names.count("divide")


def division_step(case: Case, params: list[Array], grads: list[Array]) -> Step:
    """Takes the square roots and divisions of a step, on numbers that stay in the nearest cache."""
    del params, grads
    roots, divisions = count_divisions(case)
    if not roots + divisions:
        raise Unavailable(f"{case.label} takes no division and no square root")
    loop = loops(1, roots, divisions, case.dtype, fastopt.get_isa()).divide
    size = ctypes.c_size_t(case.elements)
    return lambda: loop(size, fastopt.get_num_threads())
