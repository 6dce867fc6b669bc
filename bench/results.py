"""The results of a run, as report.py stored them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limits import BANDWIDTH, DIVISION
from peers import CANDIDATES

from fastopt.benchmark.timing import Column, Timing

REPEAT = "fastopt bound, repeated"
"""fastopt with bound gradients, measured a second time, to see how far two equal figures lie apart."""

LIMITS = (BANDWIDTH, DIVISION)
PEERS = [name for name in CANDIDATES if not name.startswith("fastopt") and name not in LIMITS]


@dataclass(frozen=True)
class Row:
    """One optimizer on one workload in one dtype: the times of every candidate."""

    optimizer: str
    dtype: str
    workload: str
    arrays: int
    elements: int
    bytes: int
    times: Mapping[Column, Timing]

    def __str__(self) -> str:
        return f"{self.optimizer} {self.dtype} {self.workload}"

    def best(self, name: str) -> float | None:
        """Seconds of a candidate with its best number of threads; its own choice does not count."""
        return min((t.median for (n, count), t in self.times.items() if n == name and count), default=None)

    def ratio(self, one: Column, other: Column) -> float | None:
        """How many times as long one takes as the other."""
        if one in self.times and other in self.times:
            return self.times[one].median / self.times[other].median
        return None

    def share_of_bandwidth_limit(self, count: int | None) -> float | None:
        """The share of the memory-bandwidth limit's speed that fastopt reaches."""
        return self.ratio((BANDWIDTH, count), ("fastopt", count))


class Results:
    """All rows and tables of one run."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.cpus: int = data["cpus"]
        done = [task for task in data["tasks"].values() if "unavailable" not in task]
        self.iterations = [task for task in done if task["kind"] == "iterations"]
        self.formats = [task for task in done if task["kind"] == "formats"]
        self.whole = [task for task in done if task["kind"] == "whole"]
        self.isas = [task for task in done if task["kind"] == "isas"]
        self.busy = next((task for task in done if task["kind"] == "busy"), None)
        self.rows: list[Row] = []
        self.reasons: dict[str, dict[str, None]] = {}
        for task in done:
            if task["kind"] != "steps":
                continue
            times = {(name, count): Timing(middle, spread) for name, count, middle, spread in task["times"]}
            fields = ("optimizer", "dtype", "workload", "arrays", "elements", "bytes")
            self.rows.append(Row(**{name: task[name] for name in fields}, times=times))
            for name, reason in task["reasons"].items():
                self.reasons.setdefault(name, {})[reason] = None

    @property
    def counts(self) -> list[int]:
        """The numbers of threads that were measured."""
        return sorted({1, self.cpus})

    def noise(self, part: float) -> float:
        """How far two equal figures lie apart, at most, in this part of the rows; 0.5 gives the median."""
        differences = sorted(
            abs(ratio - 1)
            for row in self.rows
            for n in self.counts
            if (ratio := row.ratio((REPEAT, n), ("fastopt bound", n))) is not None
        )
        return quantile(differences, part) if differences else 0.0

    def row(self, optimizer: str, workload: str, dtype: str = "float32") -> Row | None:
        found = (r for r in self.rows if (r.optimizer, r.workload, r.dtype) == (optimizer, workload, dtype))
        return next(found, None)

    def lost(self) -> Mapping[str, Sequence[tuple[float, Row]]]:
        """For each other library the rows in which it is faster, each with its best number of threads.

        With each row stands how many times as long fastopt takes.
        """
        found: dict[str, list[tuple[float, Row]]] = {}
        for row in self.rows:
            mine = row.best("fastopt")
            for name in PEERS:
                theirs = row.best(name)
                if mine and theirs and theirs < mine:
                    found.setdefault(name, []).append((mine / theirs, row))
        return found


def quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


def best_of_formats(one: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of each format or library with its best number of threads."""
    found: dict[str, float] = {}
    for name, _, middle, _ in one["times"]:
        found[name] = min(middle, found.get(name, middle))
    return found


def shown_ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
