"""One step of every optimizer by every candidate: `python -m pytest bench`, all cases with `--full`.

Each benchmark first verifies the candidate against the NumPy twin; `--benchmark-disable` does that alone.
`--benchmark-autosave` stores the results, `--benchmark-compare` compares a later run with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cases import WORKLOADS, all_variants, case, facts
from peers import CANDIDATES, compiles_long

import fastopt
from fastopt.benchmark.candidates import Unavailable, use_threads
from fastopt.benchmark.cases import Case
from fastopt.benchmark.report import number_of_threads
from fastopt.benchmark.timing import Column
from fastopt.benchmark.verify import verified


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    yield
    use_threads(None)


def in_short_run(case: Case, column: Column) -> bool:
    """Every optimizer on one thread where a step is short; Adam alone where it takes a tenth of a second."""
    if column[1] != CANDIDATES[column[0]].threads[0] or compiles_long(column[0], case, full=False):
        return False
    if case.dtype == "float64":
        return case.workload == "1 x 2^16"
    if case.workload == "1 x 2^24":
        return case.cls is fastopt.Adam and not case.options
    return case.workload in {"1 x 1,000", "1,000 x 64", "1 x 2^16", "1 x 2^20"}


def cases() -> Iterator[Any]:
    every = [
        case(variant, workload, dtype)
        for variant in all_variants()
        for dtype in ("float32", "float64")
        for workload in WORKLOADS
    ]
    for one in every:
        for name, candidate in CANDIDATES.items():
            for count in candidate.threads:
                yield pytest.param(
                    one,
                    (name, count),
                    id=f"{one.label} {one.dtype} {one.workload} {name} {number_of_threads(count)}",
                    marks=() if in_short_run(one, (name, count)) else pytest.mark.full,
                )


@pytest.mark.parametrize(("case", "column"), [*cases()])
def test_step(benchmark: Any, case: Case, column: Column) -> None:
    name, count = column
    try:
        step = verified(CANDIDATES[name], case, case.arrays(), case.arrays())
    except Unavailable as reason:
        pytest.skip(str(reason))
    use_threads(count)
    benchmark.group = f"{case.label} {case.dtype} {case.workload}"
    benchmark.extra_info.update(facts())
    benchmark(step)
