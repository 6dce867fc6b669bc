"""Ctrl-C anywhere in a call: the call is made or not made, as a whole, and the optimizer is usable at once."""

from __future__ import annotations

import random
import time

import pytest
import scenes
import table
from injection import Points, interrupt, points_of, some, timer
from own_process import run

SOME = 15
"""Points of a call that are tried by default."""
FULLY = table.LARGEST.cls.__name__
NAMES = [cls.__name__ for cls in table.OPTIMIZERS]
LOOKING_AHEAD = [cls.__name__ for cls in table.OPTIMIZERS if hasattr(cls, "lookahead")]


def class_of(name: str) -> table.Class:
    return next(cls for cls in table.OPTIMIZERS if cls.__name__ == name)


def judge(case: scenes.Case, scene: scenes.Scene, legal: dict[str, tuple[object, object]]) -> str:
    """Which of the legal outcomes an interrupted call has left; then the call that follows must work."""
    left = scene.everything()
    found = [name for name, (expected, _) in legal.items() if left == expected]
    assert found, f"the call is made in part: {differences(left, legal)}"
    case.follow(scene)
    after = scene.everything()
    assert any(after == legal[name][1] for name in found), (
        f"the next step goes astray: {differences(after, {name: (legal[name][1], None) for name in found})}"
    )
    return found[0]


def differences(left: object, legal: dict[str, tuple[object, object]]) -> str:
    """What of an outcome differs from the legal ones."""
    parts = []
    for name, (expected, _) in legal.items():
        differing = [
            what
            for what, a, b in zip(("parameters", "states", "param_groups"), left, expected, strict=True)  # type: ignore[call-overload]
            if a != b
        ]
        parts.append(f"{' and '.join(differing)} unlike {name!r}")
    return "; ".join(parts)


def inject(name: str, case_name: str, most: int | None) -> None:
    """Interrupts a call at its points, one after the other."""
    print(name, case_name, flush=True)  # shown where the process ends
    cls, case = class_of(name), scenes.CASES[case_name]
    legal, dropped = scenes.outcomes(case, cls), 0
    scene = case.scene(cls)
    points = points_of(lambda: case.call(scene))
    for number in some(points, most):
        scene = case.scene(cls)
        injected = Points(number, interrupt)
        try:
            injected.run(lambda scene=scene: case.call(scene))  # type: ignore[misc]
        except KeyboardInterrupt:
            file, function, _, line = injected.passed[-1]
            with table.named(f"{name}, {case_name}, point {number} of {len(points)}, {file}:{line} ({function})"):
                judge(case, scene, legal)  # within the `except`, as programs save what they have
        else:  # it came while something was deleted, where Python drops exceptions
            with table.named(f"{name}, {case_name}, point {number} of {len(points)}: no interrupt came out"):
                judge(case, scene, {"made": legal["made"]})
                dropped += 1
    assert dropped <= 0.05 * len(points) + 1, f"{name}, {case_name}: no interrupt came out of {dropped} points"


def inject_all(names: list[str], case_names: list[str], most: int | None) -> None:
    """Every failure of a case counts once."""
    failures = []
    for name in names:
        for case in case_names:
            if case in scenes.cases_of(class_of(name)):
                try:
                    inject(name, case, most)
                except Exception as error:
                    failures.append(f"{type(error).__name__}: {error}"[:1000])
    assert not failures, "\n".join(failures)


def outside(function: str, *arguments: object, seconds: float = 120) -> None:
    """In a process of its own, which may crash or hang."""
    run(f"import test_interrupts; test_interrupts.{function}(*{arguments!r})", seconds=seconds)


STEPS = [name for name in scenes.CASES if "step" in name and name not in scenes.OF_LOOKAHEAD]
OTHERS = [name for name in scenes.CASES if name not in STEPS and name not in scenes.OF_LOOKAHEAD]


@pytest.mark.parametrize("cases", [STEPS, OTHERS], ids=["steps", "others"])
def test_an_interrupt_at_some_points(cases: list[str]) -> None:
    outside("inject_all", [FULLY], cases, SOME)


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_an_interrupt_at_some_points_around_lookahead(name: str) -> None:
    outside("inject_all", [name], scenes.OF_LOOKAHEAD, SOME)


@table.nightly
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", scenes.CASES)
def test_an_interrupt_at_every_point_in_every_class(name: str, case: str) -> None:
    outside("inject_all", [name], [case], None, seconds=3600)


# -- Real timers -----------------------------------------------------------------------------------


def by_timer(name: str, seconds: float, seed: int) -> None:
    """Interrupts calls by a real signal after random times, for so many seconds."""
    cls, draw = class_of(name), random.Random(seed)
    cases = [scenes.CASES[case] for case in scenes.cases_of(cls)]
    legal = [scenes.outcomes(case, cls) for case in cases]
    usual = [1e-3] * len(cases)
    end, interrupted = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        k = draw.randrange(len(cases))
        scene = cases[k].scene(cls)
        start = time.perf_counter()
        try:
            with timer(draw.uniform(0, usual[k]), interrupt):
                cases[k].call(scene)
                usual[k] = time.perf_counter() - start
        except KeyboardInterrupt:
            interrupted += 1
            usual[k] *= 1.1  # so that the end of a call is reached too
        with table.named(f"{name}, {scenes.cases_of(cls)[k]}, seed {seed}"):
            judge(cases[k], scene, legal[k])
    assert interrupted > 3 * seconds, f"only {interrupted} interrupts"
    print(f"{interrupted} interrupts")


@pytest.mark.parametrize("name", [FULLY, *LOOKING_AHEAD])
def test_interrupts_by_a_timer(name: str) -> None:
    outside("by_timer", name, 1.5, 0)


@table.nightly
@pytest.mark.parametrize("name", NAMES)
def test_many_interrupts_by_a_timer(name: str) -> None:
    outside("by_timer", name, 60.0, random.randrange(10**6), seconds=300)
