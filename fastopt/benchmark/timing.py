"""Times candidates in turn, round after round."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from timeit import Timer
from typing import TypeAlias, TypeVar

from fastopt.benchmark.candidates import Candidate, Unavailable, use_threads
from fastopt.benchmark.cases import Case, fill
from fastopt.benchmark.internals import Step
from fastopt.benchmark.verify import TOLERANCE, expected, verified

T = TypeVar("T")
Column: TypeAlias = tuple[str, int | None]
"""A candidate and the number of threads that it is measured with; None is fastopt's own choice."""

TURN = 2e-3
"""Seconds for which a candidate runs at a time, at least, so that reading the clock costs little of it."""

PAUSE = 5e-3
"""Seconds between candidates, because the threads of the last one spin for a while before they sleep."""


@dataclass(frozen=True)
class Timing:
    """Seconds a step: the median, and half the distance between the quartiles."""

    median: float
    spread: float

    def __str__(self) -> str:
        return f"{in_microseconds(self.median)} ±{self.spread / self.median:.0%}"


def in_microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def measure(
    steps: Mapping[T, Step],
    prepare: Callable[[T], object],
    seconds: float,
    turn: float = TURN,
    rounds: int = 5,
) -> dict[T, Timing]:
    """Runs all steps in turn, for about this many seconds and at least this many rounds.

    Each step runs for `turn` seconds at a time, after a call of `prepare` with its key.
    """
    timers = {key: Timer(step) for key, step in steps.items()}
    samples: dict[T, list[float]] = {key: [] for key in steps}
    repeats = {}
    for key, timer in timers.items():
        prepare(key)
        timer.timeit(1)
        once = timer.timeit(1)
        repeats[key] = 1 if once > turn else int(turn / timer.timeit(3) * 3) + 1
    order, shuffle = list(steps), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, samples.values())) < rounds:
        shuffle(order)  # so that no candidate always follows the same one
        for key in order:
            prepare(key)
            time.sleep(PAUSE)
            timers[key].timeit(repeats[key] // 4 + 1)  # to warm up
            samples[key].append(timers[key].timeit(repeats[key]) / repeats[key])
    timings = {}
    for key, values in samples.items():
        low, middle, high = quantiles(values, n=4)
        timings[key] = Timing(middle, (high - low) / 2)
    return timings


def measure_case(
    case: Case, candidates: Mapping[str, Candidate], seconds: float
) -> tuple[dict[Column, Timing], dict[str, str]]:
    """Timings of the candidates that can run the case, and for each of the others the reason why not."""
    params, grads = case.arrays(), case.arrays()
    steps: dict[Column, Step] = {}
    reasons: dict[str, str] = {}
    for name, candidate in candidates.items():
        try:
            if case.elements > candidate.largest:
                raise Unavailable(f"not measured above {candidate.largest:,} elements")
            step = verified(candidate, case, params, grads)
        except Unavailable as reason:
            reasons[name] = str(reason)
            continue
        except AssertionError:
            if candidate.exact:
                raise
            reasons[name] = (
                f"its first steps are further than {TOLERANCE[case.dtype]:g} from those of NumPy's formula"
            )
            continue
        steps |= dict.fromkeys(((name, count) for count in candidate.threads), step)
    expected.cache_clear()
    gc.collect()
    fill(params, 0)
    return measure(steps, lambda column: use_threads(column[1]), seconds), reasons
