"""The targets that fastopt is to reach, and what a run reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cases import FLAT, MANY
from limits import BANDWIDTH
from results import LIMITS, Results, Row, best_of_formats, shown_ratio
from whole_step import NORM, PLAIN, WHOLE
from whole_step import TORCH as TORCH_WHOLE

from fastopt.benchmark.report import number_of_threads
from fastopt.benchmark.timing import in_microseconds

Figures: TypeAlias = "Callable[[Results], Iterable[tuple[float | None, object]]]"
"""The figures that a target judges, each with the name of the row that it comes from; None: not measured."""


@dataclass(frozen=True)
class Target:
    """A figure that must not be below, or not above, a limit. Of several figures the worst counts."""

    case: str
    sentence: str
    """Says the result, with {} in place of the figure."""
    limit: float
    figures: Figures
    at_least: bool = True
    unit: str = " times"

    def __str__(self) -> str:
        return f"{self.case}: {self.sentence}"

    def shown(self, value: float) -> str:
        match self.unit:
            case "%":
                return f"{value:.1%}"
            case "µs":
                return f"{in_microseconds(value)} µs"
        return f"{shown_ratio(value)} times"

    def line(self, results: Results) -> list[str]:
        """The target's row in the table."""
        found = [(value, str(name)) for value, name in self.figures(results) if value is not None]
        limit = f"{'at least' if self.at_least else 'at most'} {self.shown(self.limit)}"
        if not found:
            return [self.case, "not measured", limit, ""]
        value, name = min(found) if self.at_least else max(found)
        worst = f" ({'lowest' if self.at_least else 'highest'} of {len(found)}: {name})" if len(found) > 1 else ""
        return [self.case, self.sentence.format(self.shown(value)) + worst, limit, self.verdict(results, found)]

    def verdict(self, results: Results, found: Sequence[tuple[float, str]]) -> str:
        values = [value for value, _ in found]
        missed = self.misses(values)
        clearly = self.misses(values, results.noise(0.95))
        if not missed:
            return "yes"
        if len(values) > 1:
            return f"**no**: {missed} of {len(values)} miss it, {clearly or 'none'} by more than the noise"
        return "**no**" if clearly else "**no**, by less than the noise"

    def misses(self, values: Sequence[float], part: float = 0.0) -> int:
        """How many values miss the limit, by more than a part of it."""
        if self.at_least:
            return sum(value < self.limit * (1 - part) for value in values)
        return sum(value > self.limit * (1 + part) for value in values)


# -- Figures ---------------------------------------------------------------------------------------

FIRST = "1 x 2^20"
LARGE = ("1 x 2^24", "1 x 2^26", "ResNet-50", "GPT-2 small")
"""The workloads of 2^24 elements and more."""


def is_large(row: Row) -> bool:
    return row.workload in LARGE and row.arrays == 1


def share_of_limit(names: Sequence[str], chosen: Callable[[Row], bool]) -> Figures:
    """The share that fastopt reaches of the speed that the slowest of these limits allows."""

    def figures(results: Results) -> Iterable[tuple[float | None, object]]:
        for row in filter(chosen, results.rows):
            for n in results.counts:
                times = [row.times[name, n].median for name in names if (name, n) in row.times]
                share = max(times) / row.times["fastopt", n].median if times else None
                yield share, f"{row}, {number_of_threads(n)}"

    return figures


def slower_than(
    fastopt: str, peers: str | Sequence[str], optimizers: str | Sequence[str], workloads: str | Sequence[str]
) -> Figures:
    """How many times as long the fastest of these peers takes as fastopt, in float32, each at its best."""
    names, of, at = ([x] if isinstance(x, str) else list(x) for x in (peers, optimizers, workloads))

    def figures(results: Results) -> Iterable[tuple[float | None, object]]:
        for row in results.rows:
            if row.optimizer in of and row.workload in at and row.dtype == "float32":
                times = [time for name in names if (time := row.best(name))]
                mine = row.best(fastopt)
                yield min(times) / mine if times and mine else None, f"{row.optimizer} {row.workload}"

    return figures


def iteration(figure: Callable[[Mapping[str, Any]], float]) -> Figures:
    return lambda results: (
        (figure(one), one["model"]) for one in results.iterations if one["model"] == "NumPy, 784-512-512-10"
    )


def many_by_flat(results: Results) -> Iterable[tuple[float | None, object]]:
    many, one = results.row("Adam", MANY), results.row("Adam", FLAT)
    if many and one:
        bound, flat = many.best("fastopt bound"), one.best("fastopt")
        yield bound / flat if bound and flat else None, MANY


def one_small_array(results: Results) -> Iterable[tuple[float | None, object]]:
    row = results.row("Adam", "1 x 1,000")
    yield (row.best("fastopt"), row) if row else (None, "")


def single_by_double(results: Results) -> Iterable[tuple[float | None, object]]:
    for row in results.rows:
        other = results.row(row.optimizer, row.workload, "float64")
        if row.dtype == "float32" and other and row.elements >= 1000:
            for n in results.counts:
                one, two = row.times.get(("fastopt", n)), other.times.get(("fastopt", n))
                yield one.median / two.median if one and two else None, f"{row}, {number_of_threads(n)}"


def default_by_one_thread(results: Results) -> Iterable[tuple[float | None, object]]:
    for row in results.rows:
        yield row.ratio(("fastopt", None), ("fastopt", 1)), row
    for one in results.iterations:
        yield one["times"]["default"][0] / one["times"]["1 thread"][0], one["model"]


def widest_by_narrower(results: Results) -> Iterable[tuple[float | None, object]]:
    for one in results.isas:
        for name, ratio in one["ratios"].items():
            yield ratio, f"{one['optimizer']} {one['dtype']} {one['size']}, {name}"


def sixteen_bits(other: str) -> Figures:
    """How many times as long the other takes as fastopt with a bfloat16 state, each at its best."""

    def figures(results: Results) -> Iterable[tuple[float | None, object]]:
        for one in results.formats:
            if one["workload"] == "1 x 2^26":
                best = best_of_formats(one)
                yield best[other] / best["bfloat16 state"] if other in best else None, one["workload"]

    return figures


def whole_step(one: str, other: str, workload: str) -> Figures:
    """How many times as long one way to make a whole step takes as another, with the same number of threads."""

    def figures(results: Results) -> Iterable[tuple[float | None, object]]:
        for task in results.whole:
            times = {(name, count): middle for name, count, middle, _ in task["times"]}
            for n in results.counts if task["workload"] == workload else ():
                ratio = times[one, n] / times[other, n] if {(one, n), (other, n)} <= times.keys() else None
                yield ratio, f"{workload}, {number_of_threads(n)}"

    return figures


def numba_in_the_cache(results: Results) -> Iterable[tuple[float | None, object]]:
    for workload in IN_THE_CACHE:
        row = results.row("Adam", workload)
        for n in results.counts if row else ():
            yield row.ratio(("numba", n), ("fastopt", n)), f"{row}, {number_of_threads(n)}"


# -- The list --------------------------------------------------------------------------------------

NOT_FUSED: dict[str, tuple[float, Sequence[str]]] = {
    "RMSprop and Adadelta": (
        4,
        ["RMSprop", "RMSprop momentum", "RMSprop centered", "RMSprop momentum centered", "Adadelta"],
    ),
    "NAdam and RAdam": (3.5, ["NAdam", "RAdam"]),
    "Adamax": (2.5, ["Adamax"]),
    "ASGD": (1.5, ["ASGD"]),
}
"""Optimizers that torch does not fuse on a CPU, and how many times as long as fastopt it is to take for them."""

TWO_SIZES = (FIRST, "1 x 2^24")
AT_TWO_SIZES = " and ".join(TWO_SIZES)

TORCH = ("torch", "torch foreach", "torch fused")

ADAM = "Adam"
IN_THE_CACHE = ("1 x 2^14", "1 x 2^16", "1 x 2^18", "1 x 2^20")
ONE_LARGE = "one array of 2^24 elements or more"
ADAM_LARGE = "Adam, 2^24 elements or more"
ADAM_FIRST = f"Adam, {FIRST}"
ADAM_MANY = f"Adam, {MANY}"
ADAM_SMALL = "Adam, 1 x 1,000"
ADAM_BFLOAT16 = "Adam, 1 x 2^26"
ITERATION = "training iteration, 784-512-512-10"

OF_BANDWIDTH = "fastopt reaches {} of the speed that memory bandwidth allows"
OF_BOTH = f"{OF_BANDWIDTH}, or division and square root where they are slower"
BEST_TORCH = "torch's fastest form"
BY_FASTOPT = "takes {} as long as fastopt"
BY_BOUND = f"{BY_FASTOPT} with bound gradients"


def of_torch(names: str) -> Target:
    limit, optimizers = NOT_FUSED[names]
    figures = slower_than("fastopt", TORCH, optimizers, TWO_SIZES)
    return Target(f"{names}, {AT_TWO_SIZES}", f"{BEST_TORCH} {BY_FASTOPT}", limit, figures)


TARGETS = [
    Target(ONE_LARGE, OF_BANDWIDTH, 0.95, share_of_limit((BANDWIDTH,), is_large), unit="%"),
    Target(ONE_LARGE, OF_BOTH, 0.95, share_of_limit(LIMITS, is_large), unit="%"),
    Target(ADAM_LARGE, f"torch fused {BY_FASTOPT}", 1.0, slower_than("fastopt", "torch fused", "Adam", LARGE)),
    Target(ADAM_LARGE, f"DeepSpeed {BY_FASTOPT}", 1.0, slower_than("fastopt", "DeepSpeed", "Adam", LARGE)),
    Target(ADAM_FIRST, f"torch fused {BY_FASTOPT}", 1.3, slower_than("fastopt", "torch fused", "Adam", FIRST)),
    Target(ADAM_FIRST, f"DeepSpeed {BY_FASTOPT}", 1.3, slower_than("fastopt", "DeepSpeed", "Adam", FIRST)),
    Target(ADAM_FIRST, f"numba {BY_FASTOPT}", 1.0, slower_than("fastopt", "numba", "Adam", FIRST)),
    Target(
        ADAM_FIRST, OF_BOTH, 0.9, share_of_limit(LIMITS, lambda row: str(row) == f"Adam float32 {FIRST}"), unit="%"
    ),
    Target(ADAM_MANY, f"torch fused {BY_FASTOPT}", 40, slower_than("fastopt", "torch fused", "Adam", MANY)),
    Target(ADAM_MANY, f"torch fused {BY_BOUND}", 100, slower_than("fastopt bound", "torch fused", "Adam", MANY)),
    Target(ADAM_MANY, f"DeepSpeed {BY_BOUND}", 50, slower_than("fastopt bound", "DeepSpeed", "Adam", MANY)),
    Target(
        ADAM_MANY,
        "fastopt with bound gradients takes {} as long as on one array of 64,000",
        1.5,
        many_by_flat,
        at_least=False,
    ),
    Target(ADAM_SMALL, "fastopt takes {}", 1.5e-6, one_small_array, at_least=False, unit="µs"),
    Target(ADAM_SMALL, f"numba {BY_FASTOPT}", 4, slower_than("fastopt", "numba", "Adam", "1 x 1,000")),
    Target(
        ADAM_SMALL, f"torch's fastest form {BY_FASTOPT}", 15, slower_than("fastopt", TORCH, "Adam", "1 x 1,000")
    ),
    of_torch("RMSprop and Adadelta"),
    Target(
        ITERATION,
        "the step takes {} of the iteration",
        0.12,
        iteration(lambda one: one["steps"]["default"] / one["times"]["default"][0]),
        at_least=False,
        unit="%",
    ),
    Target(
        ITERATION,
        "an iteration with a hand-written NumPy step takes {} as long as one with fastopt",
        1.3,
        iteration(lambda one: one["times"]["NumPy"][0] / one["times"]["default"][0]),
    ),
    Target(
        "kernels alone",
        "the widest instruction set takes {} as long as a narrower one",
        1.05,
        widest_by_narrower,
        at_least=False,
    ),
    Target("every optimizer", "float32 takes {} as long as float64", 1.05, single_by_double, at_least=False),
    Target(
        "every optimizer",
        "the default number of threads takes {} as long as one thread",
        1.05,
        default_by_one_thread,
        at_least=False,
    ),
    Target(ADAM_BFLOAT16, "a float32 state takes {} as long as a bfloat16 state", 1.25, sixteen_bits("float32")),
    Target(ADAM_BFLOAT16, f"torch fused {BY_FASTOPT} with a bfloat16 state", 1.35, sixteen_bits("torch fused")),
    Target(
        f"{ADAM}, {IN_THE_CACHE[0]} to {IN_THE_CACHE[-1]}",
        f"numba {BY_FASTOPT} with as many threads",
        0.98,
        numba_in_the_cache,
    ),
    *(
        Target(
            f"norm, {ADAM}, average and zeros, {workload}",
            f"torch {BY_FASTOPT} with as many threads",
            limit,
            whole_step(TORCH_WHOLE, WHOLE, workload),
        )
        for workload, limit in {"1 x 2^24": 1.5, "ResNet-50": 1.7, MANY: 60}.items()
    ),
    Target(
        f"{ADAM}, 1 x 2^24",
        "a step with a norm takes {} as long as one without",
        1.2,
        whole_step(NORM, PLAIN, "1 x 2^24"),
        at_least=False,
    ),
    *(of_torch(names) for names in [*NOT_FUSED][1:]),
    Target(
        f"{', '.join(NOT_FUSED)}, {AT_TWO_SIZES}",
        f"torch.compile's form {BY_FASTOPT}",
        2,
        slower_than(
            "fastopt", "torch compile", [one for _, names in NOT_FUSED.values() for one in names], TWO_SIZES
        ),
    ),
]
"""Where a ratio is to be 1, 5 % are left for the noise."""
