"""What a call costs besides its arithmetic: the same steps, asked for in every way that the face offers.

    OPENBLAS_NUM_THREADS=1 python bench/calls.py > docs/calls.md

Each way's parameters are compared with those of the first before anything is timed. All ways of a table run in turn,
round after round in one process; that is repeated in five runs, and each figure is the median of the five.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import fastopt
from fastopt import functional
from fastopt.benchmark.candidates import use_threads
from fastopt.benchmark.internals import OPTIMIZERS, Array, Step, facts
from fastopt.benchmark.timing import in_microseconds, measure

RUNS = 5
OTHERS = 2
"""Sets of gradients that are used in turn where every step has new arrays."""

NANO = 1e-9

BOUND, LISTED, EDITED = "bound", "step(list)", "bound, after an edit of lr"
FASTOPT, NUMPY = "fastopt", "NumPy"


@dataclass(frozen=True)
class Limit:
    """A figure that a way must not exceed: times that of another way, or nanoseconds for each array above it."""

    way: str
    than: str
    most: float
    is_ratio: bool = False

    def figure(self, times: Mapping[str, float], arrays: int) -> float:
        if self.is_ratio:
            return times[self.way] / times[self.than]
        return (times[self.way] - times[self.than]) / arrays / NANO

    def line(self, times: Mapping[str, float], arrays: int) -> str:
        found = self.figure(times, arrays)
        if self.is_ratio:
            return f"{self.way} takes {found:.2f} times as long as {self.than} (at most {self.most:g})"
        return f"{self.way} takes {found:.0f} ns an array more than {self.than} (at most {self.most:g})"


def parameters(arrays: int, size: int) -> list[Array]:
    return [np.full(size, 1 + k / 1024, np.float32) for k in range(arrays)]


def gradients(arrays: int, size: int) -> list[Array]:
    return [np.full(size, 1 / 1024, np.float32) for _ in range(arrays)]


Ways = Mapping[str, tuple[Step, list[Array]]]
"""Steps by their names, each with its parameters."""


def ways_of(arrays: int, size: int) -> Ways:
    """Adam on arrays of one size. The learning rate that is edited is the same number in another object."""
    names = [f"w{k}" for k in range(arrays)]
    found: dict[str, tuple[Step, list[Array]]] = {}

    def add(name: str, make: Callable[[list[Array], list[Array]], Step]) -> None:
        params = parameters(arrays, size)
        found[name] = make(params, gradients(arrays, size)), params

    def named(arrays: list[Array]) -> dict[str, Array]:
        return dict(zip(names, arrays, strict=True))

    def bound(params: list[Array], grads: list[Array]) -> Step:
        optimizer = fastopt.Adam(params)
        optimizer.bind(grads)
        return optimizer.step

    def listed(params: list[Array], grads: list[Array]) -> Step:
        return partial(fastopt.Adam(params).step, grads)

    def listed_anew(params: list[Array], grads: list[Array]) -> Step:
        step, others = fastopt.Adam(params).step, turns(grads)
        return lambda: step(next(others))

    def by_name(params: list[Array], grads: list[Array]) -> Step:
        return partial(fastopt.Adam(named(params)).step, named(grads))

    def updated(params: list[Array], grads: list[Array]) -> Step:
        return partial(fastopt.Adam().update, params, grads)

    def updated_anew(params: list[Array], grads: list[Array]) -> Step:
        update, others = fastopt.Adam().update, turns(grads)
        return lambda: update(params, next(others))

    def updated_by_name(params: list[Array], grads: list[Array]) -> Step:
        return partial(fastopt.Adam().update, named(params), named(grads))

    def edited(params: list[Array], grads: list[Array]) -> Step:
        optimizer = fastopt.Adam(params)
        optimizer.bind(grads)
        group, step, rates = optimizer.param_groups[0], optimizer.step, itertools.cycle([0.001, float("0.001")])

        def call() -> None:
            group["lr"] = next(rates)
            step()

        return call

    def scheduled(params: list[Array], grads: list[Array]) -> Step:
        optimizer = fastopt.Adam(params, lr=lambda step: 0.001)
        optimizer.bind(grads)
        return optimizer.step

    add(BOUND, bound)
    add(LISTED, listed)
    add("step(list of new arrays)", listed_anew)
    add("step(dict)", by_name)
    add("update(list, list)", updated)
    add("update(list, list of new arrays)", updated_anew)
    add("update(dict, dict)", updated_by_name)
    add(EDITED, edited)
    add("bound, lr is a callable", scheduled)
    return found


def turns(grads: list[Array]) -> Any:
    return itertools.cycle([grads, *([g.copy() for g in grads] for _ in range(OTHERS - 1))])


def ways_of_groups(groups: int, size: int) -> Ways:
    """Adam on as many groups as arrays, of which none, one or all are edited before each step."""
    found: dict[str, tuple[Step, list[Array]]] = {}
    for name, count in (("none edited", 0), ("one edited", 1), ("all edited", groups)):
        params, grads = parameters(groups, size), gradients(groups, size)
        optimizer = fastopt.Adam([{"params": [p]} for p in params])
        optimizer.bind(grads)
        rates = itertools.cycle([0.001, float("0.001")])

        def call(optimizer: Any = optimizer, count: int = count, rates: Any = rates) -> None:
            rate = next(rates)
            for group in optimizer.param_groups[:count]:
                group["lr"] = rate
            optimizer.step()

        found[name] = call, params
    return found


def ways_of_function(cls: Any, size: int) -> Ways:
    """A bound step of an optimizer, and its function on arrays that the caller owns."""
    params, grads = parameters(1, size), gradients(1, size)
    optimizer = cls(params)
    optimizer.bind(grads)
    own, function = parameters(1, size), getattr(functional, cls.__name__.lower())
    states = {name: array.copy() for name, array in cls(own).state[0].items() if name != "step"}
    clock = itertools.count(1)
    return {
        BOUND: (optimizer.step, params),
        "function": (lambda: function(own[0], grads[0], **states, step=next(clock)), own),
    }


def clipped_by_hand(grads: list[Array], max_norm: float) -> None:
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads))
    factor = np.float32(max_norm / (norm + 1e-6))
    if factor < 1:
        for g in grads:
            g *= factor


def clipped_by_hand_adaptively(params: list[Array], grads: list[Array], clipping: float) -> None:
    for p, g in zip(params, grads, strict=True):
        largest = clipping * np.maximum(np.sqrt(np.sum(p * p, axis=0)), 1e-3)
        norm = np.sqrt(np.sum(g * g, axis=0))
        g *= np.where(norm >= largest, largest / np.maximum(norm, 1e-6), 1.0).astype(np.float32)


def values_by_hand(grads: list[Array], limit: float) -> None:
    for g in grads:
        np.clip(g, -limit, limit, out=g)


def ways_of_clipping(shapes: list[tuple[int, ...]]) -> dict[str, Ways]:
    """For each function that clips gradients, itself and NumPy's expressions for it. Every call clips a little more."""
    params = [np.full(shape, 1.0, np.float32) for shape in shapes]

    def ways(function: Callable[..., object], by_hand: Callable[..., object], *given: Any, first: float) -> Ways:
        found: dict[str, tuple[Step, list[Array]]] = {}
        for name, call in ((FASTOPT, function), (NUMPY, by_hand)):
            grads = [np.full(shape, 1.0, np.float32) for shape in shapes]
            limits = (first * 0.999999**k for k in itertools.count())
            found[name] = (lambda call=call, grads=grads, limits=limits: call(*given, grads, next(limits))), grads
        return found

    norm = math.sqrt(sum(p.size for p in params))
    by_columns = partial(fastopt.clip_grad_adaptive, axis=0)
    return {
        "clip_grad_norm": ways(fastopt.clip_grad_norm, clipped_by_hand, first=norm),
        "clip_grad_value": ways(fastopt.clip_grad_value, values_by_hand, first=1.0),
        "clip_grad_adaptive": ways(by_columns, clipped_by_hand_adaptively, params, first=1.0),
    }


def steps_of(ways: Ways) -> dict[str, Step]:
    """The steps, after three of each were found to compute the same."""
    for _ in range(3):
        for step, _params in ways.values():
            step()
    (_, first), *others = ways.values()
    for _, params in others:
        for a, b in zip(first, params, strict=True):
            # NumPy by hand adds up in float32
            np.testing.assert_allclose(a, b, rtol=1e-5 if NUMPY in ways else 0)
    return {name: step for name, (step, _) in ways.items()}


def times_of(ways: Ways, seconds: float) -> dict[str, float]:
    """The median of five runs of each way."""
    steps = steps_of(ways)
    runs = [measure(steps, lambda _: use_threads(1), seconds) for _ in range(RUNS)]
    return {name: median(run[name].median for run in runs) for name in steps}


ONE = [
    Limit("update(dict, dict)", BOUND, 2, is_ratio=True),
    Limit(EDITED, BOUND, 2, is_ratio=True),
]
MANY = [
    Limit(LISTED, BOUND, 35),
    Limit("step(list of new arrays)", BOUND, 60),
    Limit("update(list, list)", LISTED, 30),
    Limit("update(list, list of new arrays)", "step(list of new arrays)", 30),
    Limit("update(dict, dict)", "step(dict)", 30),
]


HEAD = f"""# What a call costs

The same steps of Adam, asked for in every way that the face offers, in microseconds. All ways of a table compute the
same bits, which is checked first, on one thread; they run in turn, round after round in one process. A time is the
median of {RUNS} such runs.

* *Bound*: the gradient arrays were registered with `opt.bind`, and `step()` takes no argument.
* *New arrays*: two sets of gradient arrays take turns, so that no step is given those of the step before.
* *By name*: parameters and gradients are dicts.
* *An edit of lr*: `opt.param_groups[i]["lr"] = number` before every step.

Measured by `OPENBLAS_NUM_THREADS=1 python bench/calls.py > docs/calls.md`, {{now}}, on this machine:

```
{{facts}}
```
"""


def table(title: str, times: Mapping[str, float], arrays: int = 1, limits: Sequence[Limit] = ()) -> str:
    lines = [f"## {title}\n", "| way | µs |", "|---|---|"]
    lines += [f"| {name} | {in_microseconds(seconds)} |" for name, seconds in times.items()]
    if limits:
        lines += ["", *(f"* {limit.line(times, arrays)}" for limit in limits)]
    return "\n".join(lines)


def table_of_functions(seconds: float) -> str:
    """For every optimizer."""
    lines = [
        "## Functions, 1 array of 1,000\n",
        "How many times as long a function takes as a step with bound gradients; it is to be at most 2.\n",
        "| function | µs | times |",
        "|---|---|---|",
    ]
    for cls in OPTIMIZERS:
        times = times_of(ways_of_function(cls, 1000), seconds)
        ratio = Limit("function", BOUND, 2, is_ratio=True).figure(times, 1)
        lines.append(f"| `{cls.__name__.lower()}` | {in_microseconds(times['function'])} | {ratio:.2f} |")
    return "\n".join(lines)


CLIPPED = {
    "1,000 arrays of 64": [(64,)] * 1000,
    "10 arrays of 64 by 64": [(64, 64)] * 10,
    "1 array of 1,024 by 1,024": [(1024, 1024)],
}


def table_of_clipping(seconds: float) -> str:
    lines = [
        "## Clipping without an optimizer\n",
        "Functions that clip gradients in place, and NumPy's expressions for the same: how many times as long those "
        "take.\n",
        "| function | gradients | µs | NumPy, µs | times |",
        "|---|---|---|---|---|",
    ]
    for name, shapes in CLIPPED.items():
        for function, ways in ways_of_clipping(shapes).items():
            times = times_of(ways, seconds)
            figures = " | ".join(in_microseconds(times[way]) for way in (FASTOPT, NUMPY))
            lines.append(f"| `{function}` | {name} | {figures} | {times[NUMPY] / times[FASTOPT]:.2f} |")
    return "\n".join(lines)


def page(seconds: float) -> Iterator[str]:
    """The parts of the page, each as soon as it has been measured."""
    listed = "\n".join(f"{fact + ':':<18}{value}" for fact, value in facts().items() if fact != "kernels")
    yield HEAD.format(now=f"{datetime.datetime.now():%Y-%m-%d %H:%M}", facts=listed)
    yield table("1 array of 1,000", times_of(ways_of(1, 1000), seconds), 1, ONE)
    yield table("1,000 arrays of 64", times_of(ways_of(1000, 64), seconds), 1000, MANY)
    yield table("1,000 groups of one array of 64, gradients bound", times_of(ways_of_groups(1000, 64), seconds))
    yield table_of_clipping(seconds / 4)
    yield table_of_functions(seconds / 10)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each of five runs of a table; default 2")
    for part in page(parser.parse_args(argv).seconds):
        print(part, end="\n\n" if not part.startswith("## Functions") else "\n", flush=True)


if __name__ == "__main__":
    main()
