"""How many threads a step uses when nobody has said: what was fastest when it was tried in place.

No constant can be right: under a program whose matrix products keep threads of their own, a step on two
threads may take ten times as long, or make the products wait. But the bits do not depend on the number of
threads, so real steps may be timed with either, between the products that they live with.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

from fastopt import threads

FIRST, SHORT, LONG = 8, 64, 2**14
"""Steps before the first trial, and between trials: from SHORT on, doubled with every one, up to LONG."""
SHORTEST = 50e-6
"""Seconds: a step that one thread makes in less is never divided."""
ROUNDS, BLOCK = 3, 4
"""A trial is ROUNDS times BLOCK steps with either number of threads, in random order. Several in a row,
because the first of them finds the caches as the other number left them: medians pass over it."""
GAIN = 0.07
"""The part of a step that more threads must save."""
STALL = 2.0
"""A step on more threads that takes so many times one on fewer waited for a core that was not free."""
LOST = 0.02
"""Of the time until the next trial, the most that the last one's questions and stalls may have cost."""
CHANGED = 2.5
"""So many stalls in some thirty steps: the surroundings are others than when the threads were chosen."""

Seconds: TypeAlias = float
Sample: TypeAlias = tuple[Seconds, Seconds]
"""How long a step took, and how long after it the next one began."""


class Choice:
    """Chooses the number of threads for steps of about one size.

    available() is the most that a step may use; crowded(n) whether other processes leave fewer than n CPUs.
    """

    def __init__(
        self,
        available: Callable[[], int],
        crowded: Callable[[int], bool],
        clock: Callable[[], Seconds] = perf_counter,
        seed: int = 0,
    ) -> None:
        self._available, self._crowded, self._clock = available, crowded, clock
        self._random = random.Random(seed)
        self._restart()

    def _restart(self) -> None:
        self._unseen = 0  # steps that nobody asks how long they take: a look at the clock costs small ones a tenth
        self._steps = self._every_step()
        self.count = next(self._steps)
        """What the last step used."""
        self._began = self._ended = 0.0

    def begin(self) -> int:
        """The number of threads for the step that begins now."""
        if self._unseen:
            self._unseen -= 1
            self._began = self._ended = 0.0
            return self.count
        now = self._clock()
        if self._ended:
            try:
                self.count = self._steps.send((self._ended - self._began, now - self._ended))
            except StopIteration:  # an interrupt, as by Ctrl-C, ended it
                self._restart()
        self._began = now
        return self.count

    def end(self) -> None:
        """The step is done."""
        if self._began:
            self._ended = self._clock()

    def _every_step(self) -> Generator[int, Sample, None]:
        """Yields the number of threads for each step; is sent how long it took."""
        count, gap, upwards = 1, FIRST, True
        longer = SHORT  # the gap after the next trial
        usual = 0.0  # of a step on fewer threads than `count`
        while True:
            recent: deque[Sample] = deque(maxlen=FIRST)
            stalls = 0.0
            if count == 1:
                self._unseen = gap - FIRST
            for _ in range(gap - self._unseen):
                sample = yield count
                recent.append(sample)
                if count > 1:
                    stalls = 0.97 * stalls + (sample[0] > STALL * usual)
                    if stalls > CHANGED:
                        break
            if stalls > CHANGED:
                count, gap, longer, upwards = 1, SHORT, SHORT, True
                continue
            gap = min(2 * gap, LONG)
            if count == 1 and median([step for step, _ in recent]) < SHORTEST:
                continue
            asked = self._clock()  # what reads files may take longer than a step
            most = self._available()
            count = min(count, most)
            if most == 1:
                continue
            upwards = count == 1 or (upwards and count < most)
            rival = min(2 * count, most) if upwards else count // 2
            if upwards and self._crowded(rival):
                continue
            lost = self._clock() - asked
            fewer, better, stalled = yield from self._trial(count, rival, recent)
            lost += stalled
            gap = min(max(longer, int(lost / (LOST * median([sum(sample) for sample in recent])))), LONG)
            longer = min(2 * longer, LONG)
            if better == rival:
                count, usual = rival, fewer
                longer = SHORT
                if 1 < count < most:  # the next may be better still
                    gap = FIRST
            else:
                upwards = not upwards

    def _trial(
        self, now: int, rival: int, recent: Sequence[Sample]
    ) -> Generator[int, Sample, tuple[Seconds, int, Seconds]]:
        """Times steps with either; returns a step's time on fewer threads, the better of the two, and what
        stalls have cost."""
        few, many = sorted((now, rival))
        usual = median([step for step, _ in recent]) if now == few else float("inf")
        stalls, lost = 0, 0.0
        samples: dict[int, list[Sample]] = {few: [], many: []}
        for _ in range(ROUNDS):
            for count in self._random.sample((few, many), 2):
                for _ in range(BLOCK):
                    sample = yield count
                    samples[count].append(sample)
                    if count == many and sample[0] > STALL * usual:
                        stalls += 1
                        lost += sample[0] - usual
                    if stalls == 2:
                        return 0.0, few, lost
        (step_few, rest_few), (step_many, rest_many) = (tuple(zip(*samples[n], strict=True)) for n in (few, many))
        gain = median(step_few) - median(step_many)
        harm = median(rest_many) - median(rest_few)
        # one standard error of the difference of medians, from the median deviations
        error = 1.85 * (deviation(rest_few) ** 2 + deviation(rest_many) ** 2) ** 0.5 / len(rest_few) ** 0.5
        better = gain > GAIN * median(step_few) and gain + error > harm
        return median(step_few), many if better else few, 0.0


_seeds = itertools.count()


class Choices:
    """The number of threads of an optimizer's steps: what somebody has set, else a `Choice` for each size."""

    def __init__(self) -> None:
        self.by_size: dict[int, Choice] = {}
        self._timed: Choice | None = None

    def begin(self, elements: int) -> int:
        """The number of threads for the step that begins now."""
        fixed = threads.fixed_count()
        if fixed is not None:
            self._timed = None
            return fixed
        self._timed = self.of(elements)
        return self._timed.begin()

    def end(self) -> None:
        """The step is done."""
        if self._timed is not None:
            self._timed.end()

    def of(self, elements: int) -> Choice:
        """The choice for steps of that many elements, and others of about as many."""
        size = elements.bit_length()
        if size not in self.by_size:
            # optimizers that are stepped in turns must not try the same at the same time
            self.by_size[size] = Choice(threads.available_cpus, crowded, seed=next(_seeds))
        return self.by_size[size]


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def deviation(values: Sequence[float]) -> float:
    """The median distance from the median."""
    middle = median(values)
    return median([abs(value - middle) for value in values])


def crowded(count: int, proc: Path = Path("/proc")) -> bool:
    """Whether other processes keep so many CPUs busy that fewer than ``count`` are left (Linux).

    This process's own threads do not count: what they cost is measured.
    """
    spare = (os.cpu_count() or 1) - count
    try:
        running = int((proc / "loadavg").read_text().split()[3].split("/")[0])
        if running - 1 <= spare:  # the thread that asks is one of them: nobody has to look at the others
            return False
        states = [task.read_text().rpartition(")")[2].split()[0] for task in proc.glob("self/task/*/stat")]
    except (OSError, ValueError, IndexError):
        return False
    return running - states.count("R") > spare
