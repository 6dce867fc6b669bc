"""One step of every optimizer against NumPy and torch: `python -m pytest bench`, in full `--full`.

Each benchmark first checks that the candidate computes what the NumPy twin does.
`--benchmark-autosave` keeps the results, `--benchmark-compare` puts a later run beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from cases import (
    EXACT,
    TORCH_TOLERANCE,
    Case,
    Make,
    Unavailable,
    all_variants,
    checked,
    facts,
    fastopt_step,
    label,
    numpy_out_step,
    numpy_step,
    torch_step,
)

CANDIDATES: dict[str, Make] = {
    "fastopt": fastopt_step,
    "numpy": numpy_step,
    "numpy-out": numpy_out_step,
    "torch": partial(torch_step, "best"),
}

WORKLOADS = ["1 x 1,000", "1,000 x 64", "1 x 2^16", "1 x 2^20", "1 x 2^24"]


def in_short_run(case: Case) -> bool:
    """Every optimizer at sizes that take no time, one where a step is a tenth of a second."""
    if case.dtype == "float64":
        return case.workload == "1 x 2^16"
    return case.workload != "1 x 2^24" or label(case.variant) == "Adam"


def cases() -> Iterator[Any]:
    for variant in all_variants():
        for dtype in ("float32", "float64"):
            for workload in WORKLOADS:
                case = Case(variant, workload, dtype)
                yield pytest.param(
                    case,
                    id=f"{label(variant)} {dtype} {workload}",
                    marks=() if in_short_run(case) else pytest.mark.full,
                )


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("case", [*cases()])
def test_step(benchmark: Any, case: Case, candidate: str) -> None:
    try:
        tolerance = TORCH_TOLERANCE[case.dtype] if candidate == "torch" else EXACT
        step = checked(CANDIDATES[candidate], case, tolerance)
    except Unavailable as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{label(case.variant)} {case.dtype} {case.workload}"
    benchmark.extra_info.update(facts())
    benchmark(step)
