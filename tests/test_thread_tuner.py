"""The tuner of the number of threads, on a simulated clock: it finds the best number, and trials cost little."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import machine, thread_tuner
from fastopt.thread_tuner import ThreadTuner, ThreadTuners, median

Seconds = float
MS = 1e-3
SEEDS = range(20)


@dataclass
class World:
    """A program: how long its steps take on a number of threads, and the rest of its iteration."""

    step: Callable[[int], Seconds]
    rest: Callable[[int], Seconds] = lambda n: 3 * MS
    cpus: int = 2
    busy: bool = False
    step_noise: float = 0.03
    rest_noise: float = 0.03
    disturbances: float = 0.003
    seed: int = 0
    now: Seconds = 100.0
    used: list[int] = field(default_factory=list)
    times: list[Seconds] = field(default_factory=list)
    clock_readings: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.tuner = ThreadTuner(lambda: self.cpus, lambda n: self.busy, self.clock, self.seed)

    def clock(self) -> Seconds:
        self.clock_readings += 1
        return self.now

    def noisy(self, seconds: Seconds, noise: float) -> Seconds:
        """Somewhat longer, and now and then, as on any machine, much longer."""
        late = 4 * MS if self.random.random() < self.disturbances else 0.0
        return seconds * (1 + abs(self.random.gauss(0, noise))) + late

    def run(self, steps: int) -> None:
        for _ in range(steps):
            began = self.now
            n = self.tuner.begin()
            self.now += self.noisy(self.step(n), self.step_noise)
            self.tuner.end()
            self.now += self.noisy(self.rest(n), self.rest_noise)
            self.used.append(n)
            self.times.append(self.now - began)

    def loss(self, begin: int = 0) -> float:
        """How much longer all took than with the best fixed number of threads, without noise."""
        best = min(self.step(n) + self.rest(n) for n in range(1, self.cpus + 1))
        return sum(self.step(n) + self.rest(n) for n in self.used[begin:]) / best / len(self.used[begin:]) - 1


def divided(one: Seconds, fixed: Seconds = 0.01 * MS, most: int = 64) -> Callable[[int], Seconds]:
    """A step that threads divide, up to `most` of them; to start a team costs `fixed`."""
    return lambda n: one / min(n, most) + fixed * (n > 1)


def stalls(n: int) -> Seconds:
    """A step whose other threads wait for cores that somebody else holds."""
    return 0.38 * MS if n == 1 else 5 * MS


def most_used(world: World, last: int = 30) -> int:
    counts = world.used[-last:]
    return max(set(counts), key=counts.count)


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_that_gain_are_used_after_fifty_steps(seed: int) -> None:
    world = World(divided(0.4 * MS), rest=lambda n: 0.0, rest_noise=0, seed=seed)
    world.run(50)
    assert most_used(world, 5) == 2
    world.run(950)
    assert world.loss(50) < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_that_gain_are_used_beside_products_that_take_longer(seed: int) -> None:
    world = World(divided(0.4 * MS), rest=lambda n: 5 * MS, seed=seed)
    world.run(1000)
    assert most_used(world, 500) == 2
    assert world.loss(50) < 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_that_stall_are_hardly_tried(seed: int) -> None:
    world = World(stalls, seed=seed)
    world.run(2000)
    assert most_used(world) == 1
    assert world.used.count(2) <= 20
    assert world.loss() < 0.05


def test_steps_of_one_thread_hardly_look_at_the_clock() -> None:
    world = World(lambda n: 0.01 * MS)
    world.run(10_000)
    assert set(world.used) == {1}
    assert world.clock_readings < 500


def test_steps_too_short_to_be_divided_ask_for_nothing() -> None:
    def asked(*_: int) -> int:
        raise AssertionError

    world = World(lambda n: 0.01 * MS)
    world.tuner = ThreadTuner(asked, asked, world.clock)
    world.run(10_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_questions_that_are_long_beside_a_step_are_asked_rarely(seed: int) -> None:
    world, cost = World(lambda n: 0.06 * MS, rest=lambda n: 0.0, step_noise=0, seed=seed), 2 * MS
    asked: list[int] = []

    def cpus_are_busy(n: int) -> bool:
        world.now += cost
        asked.append(n)
        return False

    world.tuner = ThreadTuner(lambda: 2, cpus_are_busy, world.clock, seed)
    world.run(1000)
    assert 0 < cost * len(asked) < 0.05 * sum(world.times)


@pytest.mark.parametrize("seed", SEEDS)
def test_stalls_that_are_long_beside_an_iteration_are_tried_more_rarely(seed: int) -> None:
    world = World(lambda n: 0.2 * MS if n == 1 else 8 * MS, rest=lambda n: MS, seed=seed)
    world.run(2000)
    assert most_used(world) == 1
    assert world.loss() < 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_that_slow_down_the_rest_are_not_used(seed: int) -> None:
    world = World(divided(0.4 * MS), rest=lambda n: (3 + 0.6 * (n > 1)) * MS, seed=seed)
    world.run(2000)
    assert most_used(world, 1000) == 1
    assert world.loss() < 0.05


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("step", "cpus", "best"),
    [(divided(8 * MS, most=4), 8, 4), (divided(64 * MS), 64, 64), (divided(9 * MS), 6, 6)],
)
def test_any_number_of_threads_is_found(step: Callable[[int], Seconds], cpus: int, best: int, seed: int) -> None:
    world = World(step, cpus=cpus, seed=seed)
    world.run(1000)
    assert most_used(world, 500) == best
    assert world.loss(500) < 0.1
    assert best in world.used[:300], "while more threads win it does not wait between trials"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_of_surroundings_is_noticed(seed: int) -> None:
    world = World(divided(0.4 * MS), seed=seed)
    world.run(500)
    assert most_used(world) == 2
    world.step = stalls
    world.run(50)
    assert world.used[-50:].count(2) < 25, "it goes back when steps stall"
    world.run(500)
    assert world.used[-500:].count(2) <= 20
    world.step = divided(0.4 * MS)
    world.run(2000)
    assert most_used(world) == 2, "it looks again"


def test_looking_becomes_rare() -> None:
    world = World(stalls, step_noise=0, rest_noise=0)
    world.run(100_000)
    looks = [i for i, n in enumerate(world.used) if n == 2]
    assert 10 < len(looks) < 50
    assert np.diff(looks).max() <= thread_tuner.LONGEST_GAP + thread_tuner.RECENT_STEPS


def test_nothing_is_tried_while_other_processes_need_the_cpus() -> None:
    world = World(divided(0.4 * MS), busy=True)
    world.run(1000)
    assert set(world.used) == {1}
    world.busy = False
    world.run(1000)
    assert most_used(world) == 2


def test_a_step_of_some_tens_of_microseconds_is_never_divided() -> None:
    world = World(divided(0.04 * MS, fixed=0))
    world.run(10_000)
    assert set(world.used) == {1}


def test_no_more_threads_than_available() -> None:
    world = World(divided(0.4 * MS), cpus=1)
    world.run(1000)
    assert set(world.used) == {1}
    world.cpus = 3
    world.run(3000)
    assert most_used(world) == 3
    world.cpus = 2
    world.run(2000)
    assert max(world.used[-500:]) == 2


def test_two_optimizers_in_turns_do_not_mistake_each_other() -> None:
    """As in a generator and its adversary: one gains from threads, the other's threads slow down both."""
    for seed in SEEDS:
        gains = World(divided(0.4 * MS), seed=2 * seed)
        harms = World(divided(0.4 * MS), rest=lambda n: (3 + 0.6 * (n > 1)) * MS, seed=2 * seed + 1)
        for _ in range(1000):
            gains.run(1)
            harms.now = gains.now
            harms.run(1)
            gains.now = harms.now
        assert most_used(gains, 500) == 2
        assert most_used(harms, 500) == 1


# -- Exceptions and signal handlers ----------------------------------------------------------------


def a_program() -> World:
    """Its steps gain from a second thread until they stall."""
    return World(divided(0.4 * MS), rest=lambda n: MS, step_noise=0, rest_noise=0, disturbances=0)


def run_program(world: World) -> None:
    world.run(35)
    world.step = stalls
    world.run(6)


class AtBytecode:
    """Calls something before one bytecode of thread_tuner.py; without a number it only counts the bytecodes."""

    def __init__(self, number: int | None, call: Callable[[], None]) -> None:
        self.remaining, self.call = number, call
        self.places: list[tuple[Any, int]] = []

    def __call__(self, frame: FrameType, event: str, arg: object) -> AtBytecode | None:
        if frame.f_code.co_filename != thread_tuner.__file__:
            return None
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            if self.remaining is None:
                self.places.append((frame.f_code, frame.f_lasti))
            elif self.remaining == 0:
                sys.settrace(None)
                self.call()
            else:
                self.remaining -= 1
        return self

    def run(self, program: Callable[[], None]) -> None:
        gc.disable()  # it would end other tests' generators, whose bytecodes would be counted
        sys.settrace(self)
        try:
            program()
        finally:
            sys.settrace(None)
            gc.enable()


def all_bytecodes() -> list[int]:
    """For each bytecode of thread_tuner.py that the program runs, the number of its second run or its only one."""
    world, counter = a_program(), AtBytecode(None, lambda: None)
    counter.run(lambda: run_program(world))
    runs: dict[tuple[Any, int], list[int]] = {}
    for number, place in enumerate(counter.places):
        runs.setdefault(place, []).append(number)
    return sorted(numbers[:2][-1] for numbers in runs.values())


def assert_usable(world: World) -> None:
    """It finds the best number of threads as soon as after any change of conditions: the gap to the next trial may
    just have become 128 steps."""
    world.step = divided(0.4 * MS)
    world.used.clear()
    world.run(220)
    assert set(world.used) <= {1, 2}
    assert most_used(world, 60) == 2


def test_an_exception_at_any_bytecode_leaves_the_tuner_usable() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    numbers = all_bytecodes()
    assert len(numbers) > 500
    for number in numbers:
        world = a_program()
        tracer = AtBytecode(number, interrupt)
        with pytest.raises(KeyboardInterrupt):
            tracer.run(lambda: run_program(world))  # noqa: B023
        assert_usable(world)


def test_a_signal_handler_that_steps_at_any_bytecode_leaves_the_tuner_usable() -> None:
    for number in all_bytecodes():
        world, steps = a_program(), 1 if number % 2 else 30
        tracer = AtBytecode(number, lambda: world.run(steps))  # noqa: B023
        tracer.run(lambda: run_program(world))  # noqa: B023
        assert_usable(world)


@pytest.mark.parametrize("name", ["_most_threads", "_cpus_are_busy", "_clock"])
def test_an_exception_in_a_callable_leaves_the_tuner_usable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    world = a_program()
    with monkeypatch.context() as patch:
        patch.setattr(world.tuner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.run(100)
    assert_usable(world)


def test_a_step_that_raises_is_not_measured() -> None:
    """Its time, from an older end to its beginning, would be negative."""
    times: list[Seconds] = []
    world = a_program()
    world.run(3)
    decide = world.tuner._decide()
    next(decide)

    class Recorder:
        def send(self, sample: tuple[Seconds, Seconds]) -> tuple[int, int]:
            times.extend(sample)
            return decide.send(sample)

    world.tuner._current = Recorder(), 1  # type: ignore[assignment]
    for _ in range(5):
        world.tuner.begin()
        world.now += MS  # and then an exception: no end()
        world.run(1)
    assert times and min(times) >= 0
    assert len(times) == 2 * 5


def test_a_clock_that_stands_still() -> None:
    world = World(lambda n: 0.0, rest=lambda n: 0.0, step_noise=0, rest_noise=0)
    world.tuner = ThreadTuner(lambda: 2, lambda n: False, lambda: 1.0)
    world.run(1000)
    assert set(world.used) == {1}


# -- The tuners of an optimizer --------------------------------------------------------------------


def test_each_size_has_its_own_tuner() -> None:
    tuners = ThreadTuners()
    assert tuners.tuner(100_000) is tuners.tuner(100_001)
    assert tuners.tuner(100_000) is not tuners.tuner(10_000_000)
    other = ThreadTuners().tuner(100_000)
    assert other is not tuners.tuner(100_000)
    assert other._random.random() != tuners.tuner(100_000)._random.random(), "trials in the same order"


def test_the_threads_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_limited_to_one_thread", lambda: False)
    tuners, size = ThreadTuners(), 100_000
    assert tuners.threads(size) == 1, "before the first step"
    world = World(divided(0.4 * MS))
    world.tuner = tuners.tuner(size)
    monkeypatch.setattr(world.tuner, "_most_threads", lambda: 2)
    monkeypatch.setattr(world.tuner, "_cpus_are_busy", lambda n: False)
    monkeypatch.setattr(world.tuner, "_clock", world.clock)
    world.run(100)
    assert most_used(world) == 2
    assert tuners.threads(size) == world.used[-1], "now and then it tries another number"
    assert tuners.threads(100 * size) == 1
    fastopt.set_num_threads(3)
    assert tuners.begin(size) == tuners.threads(size) == tuners.threads(100 * size) == 3
    fastopt.set_isa("numpy")
    assert tuners.threads(size) == 1, "the twin"
    fastopt.set_isa(None)
    monkeypatch.setattr(machine, "is_limited_to_one_thread", lambda: True)
    assert tuners.threads(size) == 1


def test_a_number_that_was_set_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tuners = ThreadTuners()
    tuners.begin(100_000)  # one that was begun before, and raised
    fastopt.set_num_threads(1)
    monkeypatch.setattr(tuners.tuner(100_000), "_clock", None)
    assert tuners.begin(100_000) == 1
    tuners.end()


def test_an_optimizer_uses_the_number_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real steps are measured, under a clock by which two threads need a fifth of the time."""
    clock = iter(range(10**6))
    teams: list[int] = []
    made: list[ThreadTuner] = []

    def simulated(most_threads: object, cpus_are_busy: object, seed: int) -> ThreadTuner:
        made.append(ThreadTuner(lambda: 2, lambda n: False, time, seed))
        return made[-1]

    def time() -> Seconds:
        return next(clock) * (0.2 if made[0].threads > 1 else 1.0)

    monkeypatch.setattr(thread_tuner, "ThreadTuner", simulated)
    optimizer = fastopt.SGD([np.ones(100_000, np.float32)])
    for _ in range(100):
        optimizer.step([np.ones(100_000, np.float32)])
        teams += [tuner.threads for tuner in made]
    if machine.is_limited_to_one_thread():
        assert not made
        return
    assert len(made) == 1
    assert teams[0] == 1
    assert teams.count(2) > 12
    fastopt.set_num_threads(1)
    before = next(clock)
    optimizer.step([np.ones(100_000, np.float32)])
    assert next(clock) == before + 1, "a fixed number of threads is not timed"


def test_median() -> None:
    assert median([3.0]) == 3
    assert median([5.0, 1.0, 9.0]) == 5
