"""The short benchmark: ``python -m fastopt bench``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from math import prod
from typing import Any, TypeVar

import fastopt
from fastopt.benchmark import internals
from fastopt.benchmark.candidates import (
    CANDIDATES,
    ONE_OR_ALL,
    ONE_THREAD,
    Candidate,
    Unavailable,
    library,
    torch_step,
    use_threads,
)
from fastopt.benchmark.cases import WORKLOADS, Case
from fastopt.benchmark.internals import CPUS
from fastopt.benchmark.timing import Column, Timing, measure_case

T = TypeVar("T")

COLUMNS = {
    "NumPy": ONE_THREAD,
    "NumPy out=": ONE_THREAD,
    "numba": ONE_OR_ALL[-1:],
    "torch best": ONE_OR_ALL[-1:],
    "fastopt": ONE_OR_ALL,
}

LEGEND = f"""\
Microseconds a step, float32: the median ± half the distance between the quartiles. A row is named after its
number of arrays x the elements of each. Each column says its number of threads, 1 or all {CPUS} CPUs.

NumPy       the update as one writes it by hand
NumPy out=  the same with its temporaries allocated beforehand
numba       the same as one loop, compiled by numba
torch best  torch.optim, fused where torch has a fused form, else foreach
"""


def main(seconds: float = 2.0) -> None:
    """Prints two tables: one optimizer on several workloads, and every optimizer on one."""
    available = CANDIDATES | {"torch best": Candidate(partial(torch_step, "best"))}
    candidates = {
        name: Candidate(available[name].make, counts, available[name].exact) for name, counts in COLUMNS.items()
    }
    at_sizes = [
        Case(fastopt.Adam, {}, name, shapes)
        for name, shapes in WORKLOADS.items()
        if sum(map(prod, shapes)) in range(1000, 2**24 + 1)
    ]
    every = [Case(cls, {}, "1 x 2^20", WORKLOADS["1 x 2^20"]) for cls in internals.OPTIMIZERS]
    results: dict[Case, dict[Column, Timing]] = {}
    missing: dict[str, None] = {}
    for case in progress([*at_sizes, *every], desc="benchmark", unit="row"):
        results[case], reasons = measure_case(case, candidates, seconds)
        missing |= dict.fromkeys(reasons.values())
    use_threads(None)
    for name, value in internals.facts().items():
        if name != "kernels":
            print(f"{name + ':':18}{value}")
    print(f"\n{LEGEND}")
    columns = [(name, count) for name, counts in COLUMNS.items() for count in counts]
    columns = [column for column in columns if any(column in timings for timings in results.values())]
    head = [f"{name}, {number_of_threads(count)}" for name, count in columns]
    for title, cases in (("Adam", at_sizes), ("2^20 elements", every)):
        rows = [
            [
                case.workload if cases is at_sizes else case.label,
                *(str(results[case].get(column, "")) for column in columns),
            ]
            for case in cases
        ]
        print(markdown([title, *head], rows))
    print("Not measured: " + "; ".join(missing) + "." if missing else "")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is aligned to the left, the others to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def number_of_threads(count: int | None) -> str:
    return "fastopt's choice of threads" if count is None else "1 thread" if count == 1 else f"{count} threads"


def progress(items: Sequence[T], **options: Any) -> Iterable[T]:
    """The items, with a progress bar where tqdm is installed."""
    try:
        return library("tqdm").tqdm(items, **options)  # type: ignore[no-any-return]
    except Unavailable:
        return items
