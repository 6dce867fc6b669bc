"""Counts the instructions of a fixed list of steps, and fails when a count grew: `python bench/instructions.py`.

Times on a shared machine cannot be a test; instruction counts can, because they are nearly the same in every run.
valgrind counts them (`apt install valgrind`). It does not support AVX-512, so the kernels run under every other
instruction set. Counts depend on compiler, Python and NumPy: `--write` stores them in instructions.json for the
present combination. For a combination without stored counts nothing is compared.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from cases import MANY, WORKLOADS, all_kernels, kernel_step
from limits import compiled
from peers import bound_step

import fastopt
from fastopt.benchmark import internals
from fastopt.benchmark.candidates import fastopt_step
from fastopt.benchmark.cases import Case, fill
from fastopt.benchmark.internals import Step

STORED = Path(__file__).with_suffix(".json")

GROWTH = 0.03
"""The part by which a count may grow before the comparison fails."""

ELEMENTS = 60_000
"""The size of the arrays on which kernels run."""

WARM = 20
"""Steps before the first that is counted, because Python specialises a function's code in its first calls."""


def environment() -> str:
    """Everything that counts depend on, as one line."""
    return (
        f"{platform.machine()}, compiler {internals.COMPILER}, Cython {internals.cython_version()}, "
        f"OpenMP {internals.OPENMP}, Python {platform.python_version()}, NumPy {np.__version__}"
    )


# -- Inside valgrind -------------------------------------------------------------------------------


def steps() -> Iterator[tuple[str, str, int, Callable[[], Step]]]:
    """The steps to count: name, instruction set, how many times to run it, and a function that makes it."""

    def step(make: Callable[..., Step], case: Case) -> Step:
        params, grads = case.arrays(), case.arrays()
        fill(params, 0)
        fill(grads, 1)
        return make(case, params, grads)

    isas = [name for name in fastopt.available_isas() if name != "numpy"]
    for variant in all_kernels():
        for dtype in ("float32", "float64"):
            case = Case(variant.cls, variant.options, "", [(ELEMENTS,)], dtype)
            for isa in isas:
                yield f"{case.label} {dtype} {isa}", isa, 4, partial(kernel_step, case)
    for workload in ("1 x 1,000", MANY):
        case = Case(fastopt.Adam, {}, workload, WORKLOADS[workload])
        for name, make in (("list", fastopt_step), ("bound", bound_step)):
            yield f"Adam {workload} {name}", isas[0], 20, partial(step, make, case)


def run_steps() -> None:
    """Runs the steps; after each it writes valgrind's counter to a file under the step's name."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "requests.c")
        source.write_text(
            "#include <valgrind/callgrind.h>\n"
            "void start(void) { CALLGRIND_START_INSTRUMENTATION; }\n"
            "void dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }\n"
        )
        requests = compiled(source)
    gc.disable()
    requests.start()
    for name, isa, number, make in steps():
        fastopt.set_isa(isa)
        step = make()
        for _ in range(WARM):
            step()
        for count in (number, 2 * number):
            requests.dump(b"")
            for _ in range(count):
                step()
            requests.dump(ctypes.c_char_p(f"{count} {name}".encode()))


# -- Outside ---------------------------------------------------------------------------------------


def counted() -> dict[str, int]:
    """Instructions a step: the difference of two runs of different lengths, which leaves out all setting up."""
    totals: dict[str, dict[int, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/counts"]
        settings = {"PYTHONHASHSEED": "0", "FASTOPT_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, sys.executable, __file__, "--inside"],
            env={**os.environ, **settings, "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"valgrind failed:\n{done.stderr[-4000:]}")
        for file in sorted(Path(folder).glob("counts.*"), key=lambda file: int(file.suffix[1:])):
            text = file.read_text()
            named = re.search(r"^desc: Trigger: Client Request: (\d+) (.+)$", text, re.MULTILINE)
            total = re.search(r"^(?:totals|summary): (\d+)$", text, re.MULTILINE)
            if named and total:
                totals.setdefault(named[2], {})[int(named[1])] = int(total[1])
    counts = {}
    for name, of in totals.items():
        short, long = sorted(of)
        counts[name] = round((of[long] - of[short]) / (long - short))
    return counts


def compared(counts: Mapping[str, int], stored: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Lines about counts that grew by more than GROWTH, and about those that fell, are new or are gone."""
    grown, other = [], []
    for name, count in counts.items():
        if name not in stored:
            other.append(f"{name}: {count:,}, not stored yet")
            continue
        line = f"{name}: {count:,}, stored {stored[name]:,} ({count / stored[name] - 1:+.1%})"
        if count > stored[name] * (1 + GROWTH):
            grown.append(line)
        elif count < stored[name] * (1 - GROWTH):
            other.append(line)
    other += [f"{name}: stored, but no longer counted" for name in stored if name not in counts]
    return grown, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the counts")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        run_steps()
        return
    every = json.loads(STORED.read_text()) if STORED.exists() else {}
    here = environment()
    if not shutil.which("valgrind"):
        print("instructions: not counted, there is no valgrind here")
        return
    if here not in every and not arguments.write:
        print(f"instructions: not counted, none are stored for {here}; --write does")
        return
    counts = counted()
    grown, other = compared(counts, every.get(here, {}))
    for line in [*grown, *other]:
        print(line)
    if arguments.write:
        STORED.write_text(json.dumps({**every, here: counts}, indent=1) + "\n")
        print(f"{STORED.name}: {len(counts)} counts stored for {here}")
    elif grown:
        sys.exit(f"{len(grown)} of {len(counts)} counts grew by more than {GROWTH:.0%}")
    else:
        print(f"none of {len(counts)} counts grew by more than {GROWTH:.0%}")


if __name__ == "__main__":
    main()
