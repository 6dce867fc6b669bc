"""The default's choice of threads, driven by a simulated clock: it finds the best, and looking costs little."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import choice
from fastopt.choice import Choice, Choices, crowded, median

Seconds = float
MS = 1e-3
SEEDS = range(20)


@dataclass
class World:
    """A program that steps: how long that takes on so many threads, and the rest of its iteration."""

    step: Callable[[int], Seconds]
    rest: Callable[[int], Seconds] = lambda n: 3 * MS
    cpus: int = 2
    busy: bool = False
    step_noise: float = 0.03
    rest_noise: float = 0.03
    seed: int = 0
    now: Seconds = 100.0
    used: list[int] = field(default_factory=list)
    times: list[Seconds] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.choice = Choice(lambda: self.cpus, lambda n: self.busy, self.clock, self.seed)

    def clock(self) -> Seconds:
        self.looks += 1
        return self.now

    def noisy(self, seconds: Seconds, noise: float) -> Seconds:
        """Somewhat longer, and now and then, as on any machine, much longer."""
        late = 4 * MS if self.random.random() < 0.003 else 0.0
        return seconds * (1 + abs(self.random.gauss(0, noise))) + late

    def run(self, steps: int) -> None:
        for _ in range(steps):
            began = self.now
            n = self.choice.begin()
            self.now += self.noisy(self.step(n), self.step_noise)
            self.choice.end()
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
    assert world.looks < 500


def test_steps_too_short_to_be_divided_ask_for_nothing() -> None:
    def asked(*_: int) -> int:
        raise AssertionError

    world = World(lambda n: 0.01 * MS)
    world.choice = Choice(asked, asked, world.clock)
    world.run(10_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_questions_that_are_long_beside_a_step_are_asked_rarely(seed: int) -> None:
    world, cost = World(lambda n: 0.06 * MS, rest=lambda n: 0.0, step_noise=0, seed=seed), 2 * MS
    asked: list[int] = []

    def crowded(n: int) -> bool:
        world.now += cost
        asked.append(n)
        return False

    world.choice = Choice(lambda: 2, crowded, world.clock, seed)
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
    assert np.diff(looks).max() <= choice.LONG + choice.FIRST


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


def test_an_interrupt_does_not_end_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    world = World(divided(0.4 * MS))
    with monkeypatch.context() as patch:
        patch.setattr(world.choice, "_available", interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.run(100)
    world.run(1000)
    assert most_used(world) == 2


def test_each_size_has_its_own_choice() -> None:
    choices = Choices()
    assert choices.of(100_000) is choices.of(100_001)
    assert choices.of(100_000) is not choices.of(10_000_000)
    other = Choices().of(100_000)
    assert other is not choices.of(100_000)
    assert other._random.random() != choices.of(100_000)._random.random(), "trials in the same order"


def test_an_optimizer_uses_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is timed, and runs on as many threads as `begin` says: the real choice, with a clock that lies."""
    clock = iter(range(10**6))
    teams: list[int] = []
    optimizer = fastopt.SGD([np.ones(100_000, np.float32)])
    chosen = optimizer._choices.of(100_000)
    monkeypatch.setattr(chosen, "_clock", lambda: next(clock) * (0.2 if chosen.count > 1 else 1.0))
    monkeypatch.setattr(chosen, "_available", lambda: 2)
    monkeypatch.setattr(chosen, "_crowded", lambda n: False)
    for _ in range(100):
        optimizer.step([np.ones(100_000, np.float32)])
        teams.append(chosen.count)
    assert teams[0] == 1
    if fastopt._kernels.OPENMP:
        assert teams.count(2) > 12
    fastopt.set_num_threads(1)
    before = next(clock)
    optimizer.step([np.ones(100_000, np.float32)])
    assert next(clock) == before + 1, "a fixed number of threads is not timed"


def test_crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for i, state in enumerate("RSR"):  # two of our own threads run
        stat = tmp_path / f"self/task/{i}/stat"
        stat.parent.mkdir(parents=True)
        stat.write_text(f"{i} (a (name) R ) {state} 1 2 3")
    for running, count, expected in [(2, 4, False), (3, 4, True), (3, 3, False), (6, 1, True)]:
        (tmp_path / "loadavg").write_text(f"0.1 0.2 0.3 {running}/99 1234\n")
        assert crowded(count, tmp_path) is expected
    (tmp_path / "loadavg").write_text("something else")
    assert not crowded(4, tmp_path)
    assert not crowded(4, tmp_path / "missing")


def test_median() -> None:
    assert median([3.0]) == 3
    assert median([5.0, 1.0, 9.0]) == 5
