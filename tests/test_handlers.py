"""Handlers of signals, and callables, within a call: what only reads succeeds, and sees all before or all after.

A handler of SIGTERM saves what it can: `state_dict`, `state` and `repr` work wherever the signal comes, and the
call that it comes into goes on as if nothing had been. What writes is refused there, without a trace.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scenes
import table
from injection import Points, points_of, some, timer
from own_process import run

import fastopt

SOME = 8
"""Points of a call that are tried by default."""
FULLY = table.LARGEST.cls.__name__
NAMES = [cls.__name__ for cls in table.OPTIMIZERS]
LOOKING_AHEAD = [cls.__name__ for cls in table.OPTIMIZERS if hasattr(cls, "lookahead")]
WRITING = {name: case for name, case in scenes.CASES.items() if name not in {"a function", "another optimizer"}}


def class_of(name: str) -> table.Class:
    return next(cls for cls in table.OPTIMIZERS if cls.__name__ == name)


def outside(function: str, *arguments: object, seconds: float = 120) -> None:
    """In a process of its own, which may crash or hang."""
    run(f"import test_handlers; test_handlers.{function}(*{arguments!r})", seconds=seconds)


def as_bytes(value: Any) -> Any:
    return table.bits_of(value) if isinstance(value, np.ndarray) else repr(value)


class Reader:
    """What a handler saves; later each of them is held against what the call may leave."""

    def __init__(self, scene: scenes.Scene) -> None:
        self.scene = scene
        self.seen: list[Any] = []
        self.reading = False

    def read(self) -> None:
        if self.reading:  # a callable that is asked in order to save it
            return
        self.reading = True
        try:
            optimizer = self.scene.optimizer
            saved = optimizer.state_dict()
            self.seen.append(
                (
                    [table.bits_of(p) for p in self.scene.arrays],
                    self.scene.everything()[1],
                    steps_and_states(saved),
                    repr(optimizer),
                )
            )
        finally:
            self.reading = False


def steps_and_states(saved: dict[str, Any]) -> Any:
    """Of a state dict what steps change; a state that was only made yet counts as not there."""
    return {
        key: {name: as_bytes(value) for name, value in entry.items() if name == "step" or np.any(value)}
        for key, entry in saved["state"].items()
    }


def views(case: scenes.Case, cls: table.Class) -> list[Any]:
    """What a reader may see: all before the call, the edits taken, or all after it."""
    found = []
    for name in "before", "edits taken", "after":
        scene = case.scene(cls)
        if name == "edits taken":
            table.take_edits(scene.optimizer)
        elif name == "after":
            case.call(scene)
        reader = Reader(scene)
        reader.read()
        found += reader.seen
    return found


def judge(reader: Reader, legal: list[Any]) -> None:
    for seen in reader.seen:
        assert seen in legal, "a reader saw " + "; ".join(
            " and ".join(
                what
                for what, a, b in zip(("parameters", "state", "state_dict()", "repr"), seen, one, strict=True)
                if a != b
            )
            + f" unlike {name}"
            for name, one in zip(("before", "with the edits taken", "after"), legal, strict=True)
        )


def read_at_points(name: str, case_names: list[str], most: int | None) -> None:
    """Reads at the points of calls, one after the other."""
    failures = []
    for case in case_names:
        try:
            read_in(class_of(name), case, most)
        except Exception as error:
            failures.append(str(error))
    assert not failures, "\n".join(failures)


def read_in(cls: table.Class, case_name: str, most: int | None) -> None:
    print(cls.__name__, case_name, flush=True)  # shown where the process ends
    case = scenes.CASES[case_name]
    legal, after = views(case, cls), scenes.outcomes(case, cls)["made"][0]
    scene = case.scene(cls)
    points = points_of(lambda: case.call(scene))
    for number in some(points, most):
        scene = case.scene(cls)
        reader = Reader(scene)
        file, function, _, line = points[number]
        with table.named(f"{case_name}, point {number} of {len(points)}, {file}:{line} ({function})"):
            Points(number, reader.read).run(lambda: case.call(scene))  # noqa: B023
            assert reader.seen, "not read"
            judge(reader, legal)
            assert scene.everything() == after, "the call does not go on as if nothing had been"
            case.follow(scene)


@pytest.mark.parametrize("name", [FULLY, *LOOKING_AHEAD])
def test_a_handler_reads_at_some_points(name: str) -> None:
    looks_ahead = name in LOOKING_AHEAD
    outside("read_at_points", name, [x for x in WRITING if (x in scenes.OF_LOOKAHEAD) == looks_ahead], SOME)


@table.nightly
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", WRITING)
def test_a_handler_reads_at_every_point_in_every_class(name: str, case: str) -> None:
    outside("read_at_points", name, [case] if case in scenes.cases_of(class_of(name)) else [], None, seconds=3600)


# -- Real timers -----------------------------------------------------------------------------------


def read_by_timer(name: str, seconds: float, seed: int) -> None:
    """A real signal comes after random times, and its handler reads."""
    cls, draw = class_of(name), random.Random(seed)
    cases = [WRITING[case] for case in scenes.cases_of(cls) if case in WRITING]
    legal = [views(case, cls) for case in cases]
    after = [scenes.outcomes(case, cls)["made"][0] for case in cases]
    usual = [1e-3] * len(cases)
    end, read = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        k = draw.randrange(len(cases))
        scene = cases[k].scene(cls)
        reader = Reader(scene)
        start = time.perf_counter()
        with timer(draw.uniform(0, usual[k]), reader.read):
            cases[k].call(scene)
        if not reader.seen:
            usual[k] = 0.5 * (usual[k] + time.perf_counter() - start)
        read += len(reader.seen)
        with table.named(f"{name}, {[*WRITING][k]}, seed {seed}"):
            judge(reader, legal[k])
            assert scene.everything() == after[k], "the call does not go on as if nothing had been"
    assert read > 3 * seconds, f"only {read} signals"


@pytest.mark.parametrize("name", [FULLY, *LOOKING_AHEAD])
def test_a_handler_of_a_timer_reads(name: str) -> None:
    outside("read_by_timer", name, 1.0, 0)


@table.nightly
@pytest.mark.parametrize("name", NAMES)
def test_a_handler_of_a_timer_reads_often(name: str) -> None:
    outside("read_by_timer", name, 60.0, random.randrange(10**6), seconds=300)


def read_during_large_steps() -> None:
    """Where the kernels take most of the time; the elements are equal, and tell a torn step."""
    size = 2**20
    params, grads = [np.ones(size, np.float32)] * 1, [np.full(size, 0.5, np.float32)]
    optimizer = fastopt.Adam(params, lr=1e-3)
    seen: list[int] = []

    def read() -> None:
        saved = optimizer.state_dict()["state"][0]
        assert (params[0] == params[0][0]).all()
        for value in (saved["exp_avg"], saved["exp_avg_sq"], optimizer.state[0]["exp_avg"]):
            assert (value == value.flat[0]).all()
        seen.append(saved["step"])

    draw = random.Random(0)
    for _ in range(60):
        with timer(draw.uniform(0, 2e-3), read):
            optimizer.step(grads)
    assert optimizer.state[0]["step"] == 60
    assert len(seen) > 10
    assert seen == sorted(seen)


def test_a_handler_reads_during_large_steps() -> None:
    outside("read_during_large_steps")


# -- Callables -------------------------------------------------------------------------------------


def test_a_callable_reads_what_was_before_the_step() -> None:
    for cls in table.OPTIMIZERS:
        with table.named(cls.__name__):
            scene = scenes.Scene(cls)
            reader = Reader(scene)

            def lr(step: int, reader: Reader = reader) -> float:
                if not reader.reading:
                    reader.read()
                return 0.1

            scene.optimizer.param_groups[1]["lr"] = lr
            before = [table.bits_of(p) for p in scene.arrays], scene.everything()[1]
            scene.step()
            assert reader.seen, "the callable was not asked"
            assert all(seen[:2] == before for seen in reader.seen)
            plain = scenes.Scene(cls)
            plain.optimizer.param_groups[1]["lr"] = 0.1
            plain.step()
            assert scene.everything()[:2] == plain.everything()[:2]


# -- What writes -----------------------------------------------------------------------------------

WRITES: dict[str, Callable[[scenes.Scene], object]] = {
    "step": lambda s: s.optimizer.step(s.grads),
    "load_state_dict": lambda s: s.optimizer.load_state_dict(s.saved),
    "add_param_group": scenes.add,
    "bind": lambda s: s.optimizer.bind(s.grads),
}


def write_at_points(name: str, way: str, most: int | None) -> None:
    """At points within a step a handler writes: it is refused, or the two calls come one after the other."""
    cls = class_of(name)

    def scene_of() -> scenes.Scene:
        scene = scenes.Scene(cls)
        scenes.edit(lr=0.05)(scene)
        scene.saved = scenes.Scene(cls, steps=5).optimizer.state_dict()
        return scene

    def left_by(*calls: Callable[[scenes.Scene], object]) -> Any:
        scene = scene_of()
        for call in calls:
            call(scene)
        return scene.everything()[:2]

    write = WRITES[way]
    alone = left_by(scenes.Scene.step)
    one_by_one = [left_by(write, scenes.Scene.step), left_by(scenes.Scene.step, write)]
    refusals = 0
    started = scene_of()
    points = points_of(lambda: started.optimizer.step(started.grads))
    for number in some(points, most):
        scene = scene_of()
        refused: list[RuntimeError] = []

        def act(scene: scenes.Scene = scene, refused: list[RuntimeError] = refused) -> None:
            try:
                write(scene)
            except RuntimeError as error:
                refused.append(error)

        file, function, _, line = points[number]
        with table.named(f"point {number} of {len(points)}, {file}:{line} ({function})"):
            try:
                Points(number, act).run(lambda scene=scene: scene.optimizer.step(scene.grads))  # type: ignore[misc]
            except ValueError as error:  # a parameter was added before the step, which has no gradient for it
                assert way == "add_param_group" and "got 4 for 5" in str(error)
                continue
            left = scene.everything()[:2]
            if refused:
                refusals += 1
                assert left == alone, "a refused call has left a trace"
            else:
                assert left in one_by_one, "two calls have mixed"
    assert refusals, "nothing was refused"


@pytest.mark.parametrize("way", WRITES)
def test_a_handler_that_writes_is_refused(way: str) -> None:
    outside("write_at_points", FULLY, way, SOME)


@table.nightly
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WRITES)
def test_a_handler_that_writes_is_refused_everywhere(name: str, way: str) -> None:
    outside("write_at_points", name, way, None, seconds=3600)
