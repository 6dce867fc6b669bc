"""Finds the number of threads for an optimizer's steps, when no number was set, by measuring real steps.

No constant can be right: if a program's matrix products keep threads of their own, a step on two threads may
take ten times as long as on one, or slow the products down. The number of threads does not change the bits of the
result, so real steps can be measured with different numbers of threads, in the program that they belong to.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from time import perf_counter
from typing import NamedTuple, NoReturn, TypeAlias

from fastopt import machine

Seconds: TypeAlias = float

RECENT_STEPS = 8
"""Steps that are measured before a trial, and so the number of steps before the first one."""
SHORTEST_GAP, LONGEST_GAP = 64, 2**14
"""Steps between two trials. The gap is doubled with every trial."""
SHORTEST_DIVIDED_STEP: Seconds = 50e-6
"""A step that takes one thread less than this is never divided."""
ROUNDS, STEPS_IN_A_ROW = 3, 4
"""A trial has ROUNDS rounds. In each, STEPS_IN_A_ROW steps use one number of threads and as many the other, in
random order. The first step in a row finds the caches as the other number of threads left them; there are several,
so that the median is not such a step."""
LEAST_GAIN = 0.07
"""More threads must save this part of a step, or they are not kept."""
STALL_RATIO = 2.0
"""A step is a stall if it takes more than this many times as long as a step on fewer threads: one of its threads
waited for a CPU."""
LARGEST_OVERHEAD = 0.02
"""A trial's questions and stalls may cost this part of the time until the next trial."""
TOO_MANY_STALLS = 2.5
"""So many stalls within some thirty steps mean that conditions have changed since the trial."""


Sample: TypeAlias = tuple[Seconds, Seconds]
"""How long a step took, and the time from its end to the beginning of the next."""


Decision: TypeAlias = tuple[int, int]
"""The number of threads for the next steps, and how many of those after the next one need not be measured: to read
the clock twice costs a small step a tenth of its time."""


class Trial(NamedTuple):
    """The result of a trial of two numbers of threads."""

    threads: int
    """The better number."""
    step_on_fewer: Seconds
    """The median time of a step on the smaller number of threads."""
    lost: Seconds
    """The time that stalls have cost, if they have ended the trial."""


Decisions: TypeAlias = Generator[Decision, Sample, NoReturn]


class ThreadTuner:
    """Finds the number of threads for steps of about one size.

    most_threads() is the largest number that a step may use. cpus_are_busy(n) says whether other processes leave
    fewer than n CPUs.

    Neither an exception (a signal may raise one between any two bytecodes) nor a signal handler that makes steps
    of its own can break the tuner. A generator holds all that the tuner has learned. `begin` takes it away,
    resumes it, and puts it back together with its answer, by one assignment. So a generator that an exception
    has ended is never put back. The next `begin` makes a new one, which starts with one thread. A sample exists
    only if `begin` and then `end` have returned.
    """

    def __init__(
        self,
        most_threads: Callable[[], int],
        cpus_are_busy: Callable[[int], bool],
        clock: Callable[[], Seconds] = perf_counter,
        seed: int = 0,
    ) -> None:
        self._most_threads, self._cpus_are_busy, self._clock = most_threads, cpus_are_busy, clock
        self._random = random.Random(seed)
        self._current: tuple[Decisions, int] | None = None  # the generator, and the threads that it decided on
        self._unmeasured = 0  # how many of the next steps are not measured
        self._began: Seconds | None = None  # of the last step; None if it is not measured
        self._ended: Seconds | None = None

    @property
    def threads(self) -> int:
        """The number of threads that steps use now."""
        current = self._current
        return 1 if current is None else current[1]

    def begin(self) -> int:
        """Call this before a step. Returns the step's number of threads."""
        current = self._current
        if self._unmeasured and current is not None:
            self._unmeasured -= 1
            self._ended = self._began = None
            return current[1]
        began, ended = self._began, self._ended
        self._ended = self._began = None
        now = self._clock()
        if current is None:
            decisions = self._decide()
            threads, unmeasured = next(decisions)
        elif began is not None and ended is not None:
            decisions = current[0]
            self._current = None
            threads, unmeasured = decisions.send((ended - began, now - ended))
        else:
            self._began = now
            return current[1]
        self._unmeasured = unmeasured
        self._current = decisions, threads
        self._began = now
        return threads

    def end(self) -> None:
        """Call this when the step is done."""
        if self._began is not None:
            self._ended = self._clock()

    def _decide(self) -> Decisions:
        """Yields how the next steps are made, and receives the times of each step that is measured. Never ends."""
        threads, gap, upwards = 1, RECENT_STEPS, True
        next_gap = SHORTEST_GAP
        step_on_fewer = 0.0
        while True:
            recent: deque[Sample] = deque(maxlen=RECENT_STEPS)
            stalls = 0.0
            unmeasured = gap - RECENT_STEPS if threads == 1 else 0
            decision, next_decision = (threads, unmeasured), (threads, 0)
            for _ in range(gap - unmeasured):
                sample = yield decision
                decision = next_decision
                recent.append(sample)
                if threads > 1:
                    stalls = 0.97 * stalls + (sample[0] > STALL_RATIO * step_on_fewer)
                    if stalls > TOO_MANY_STALLS:
                        break
            if stalls > TOO_MANY_STALLS:
                threads, gap, next_gap, upwards = 1, SHORTEST_GAP, SHORTEST_GAP, True
                continue
            gap = min(2 * gap, LONGEST_GAP)
            if threads == 1 and median([step for step, _ in recent]) < SHORTEST_DIVIDED_STEP:
                continue
            asked = self._clock()  # the answers are read from files, which may take longer than a step
            most = self._most_threads()
            threads = min(threads, most)
            if most == 1:
                continue
            upwards = threads == 1 or (upwards and threads < most)
            rival = min(2 * threads, most) if upwards else threads // 2
            if upwards and self._cpus_are_busy(rival):
                continue
            overhead = self._clock() - asked
            trial = yield from self._try(threads, rival, recent)
            overhead += trial.lost
            iteration = max(median([sum(sample) for sample in recent]), 1e-9)  # a clock may stand still
            gap = min(max(next_gap, int(overhead / (LARGEST_OVERHEAD * iteration))), LONGEST_GAP)
            next_gap = min(2 * next_gap, LONGEST_GAP)
            if trial.threads == rival:
                threads, step_on_fewer = rival, trial.step_on_fewer
                next_gap = SHORTEST_GAP
                if 1 < threads < most:  # still more threads may be better still
                    gap = RECENT_STEPS
            else:
                upwards = not upwards

    def _try(self, threads: int, rival: int, recent: Sequence[Sample]) -> Generator[Decision, Sample, Trial]:
        """Measures steps with both numbers of threads."""
        few, many = sorted((threads, rival))
        usual = median([step for step, _ in recent]) if threads == few else float("inf")
        stalls, lost = 0, 0.0
        samples: dict[int, list[Sample]] = {few: [], many: []}
        for _ in range(ROUNDS):
            for count in self._random.sample((few, many), 2):
                decision = (count, 0)
                for _ in range(STEPS_IN_A_ROW):
                    sample = yield decision
                    samples[count].append(sample)
                    if count == many and sample[0] > STALL_RATIO * usual:
                        stalls += 1
                        lost += sample[0] - usual
                    if stalls == 2:
                        return Trial(few, step_on_fewer=0.0, lost=lost)
        (step_few, rest_few), (step_many, rest_many) = (tuple(zip(*samples[n], strict=True)) for n in (few, many))
        gain = median(step_few) - median(step_many)
        harm = median(rest_many) - median(rest_few)
        # one standard error of the difference of medians, from the median deviations
        spread = (median_deviation(rest_few) ** 2 + median_deviation(rest_many) ** 2) ** 0.5
        error = 1.85 * spread / len(rest_few) ** 0.5
        is_better = gain > LEAST_GAIN * median(step_few) and gain + error > harm
        return Trial(many if is_better else few, median(step_few), lost=0.0)


_seeds = itertools.count()


class ThreadTuners:
    """The numbers of threads of one optimizer's steps: the number that was set, else a tuner's for each size."""

    def __init__(self) -> None:
        self._by_size: dict[int, ThreadTuner] = {}
        self._measuring: ThreadTuner | None = None

    def begin(self, elements: int) -> int:
        """Call this before a step of that many elements. Returns the step's number of threads."""
        fixed = machine.fixed_num_threads()
        if fixed is not None:
            self._measuring = None
            return fixed
        tuner = self._measuring = self._by_size.get(elements.bit_length()) or self.tuner(elements)
        return tuner.begin()

    def end(self) -> None:
        """Call this when the step is done."""
        tuner = self._measuring
        if tuner is not None:
            tuner.end()

    def threads(self, elements: int) -> int:
        """The number of threads that steps of that many elements use now, as far as they have so many tasks."""
        if machine.is_limited_to_one_thread() or machine.get_isa() == machine.TWIN:
            return 1
        fixed = machine.fixed_num_threads()
        if fixed is not None:
            return fixed
        tuner = self._by_size.get(elements.bit_length())
        return 1 if tuner is None else tuner.threads

    def tuner(self, elements: int) -> ThreadTuner:
        """The tuner of steps of about that many elements: sizes between two powers of two share one."""
        tuner = self._by_size.get(elements.bit_length())
        if tuner is None:
            # Each tuner has a seed of its own: optimizers that are stepped in turns must not try the same number
            # of threads at the same time, since each measures the other's steps as the rest of its iteration.
            tuner = ThreadTuner(machine.available_cpus, machine.others_keep_cpus_busy, seed=next(_seeds))
            self._by_size[elements.bit_length()] = tuner
        return tuner


def median(values: Sequence[float]) -> float:
    """The upper median."""
    return sorted(values)[len(values) // 2]


def median_deviation(values: Sequence[float]) -> float:
    """The median distance from the median."""
    middle = median(values)
    return median([abs(value - middle) for value in values])
