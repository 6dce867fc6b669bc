"""Schedules made of others: a warm-up in front, one after the other, the product; and warm-up, stable, decay."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastopt.options import as_number, shown
from fastopt.schedules.arguments import (
    Steps,
    StepsOrZero,
    Value,
    elements,
    increasing,
    number_in,
    one_of,
)
from fastopt.schedules.decays import constant
from fastopt.schedules.schedule import Curve, Schedule, schedule


def _any_schedule(name: str, value: Any) -> Curve:
    """A schedule or another function of the step as it is, a number as the constant schedule."""
    if callable(value):
        function: Curve = value
        return function
    try:
        as_number(name, value)
    except TypeError:
        raise TypeError(
            f"{name}: expected a schedule, a function of the step or a number, got {shown(value)}"
        ) from None
    return constant(number_in(0)(name, value))


def _schedules(name: str, value: Any) -> tuple[Curve, ...]:
    parts = elements(name, value, "schedules")
    if not parts:
        raise ValueError(f"{name}: there are none; pass at least one schedule")
    return tuple(_any_schedule(f"{name}[{i}]", part) for i, part in enumerate(parts))


AnySchedule = Annotated[Callable[[int], float] | float, _any_schedule]
Schedules = Annotated[Sequence[Callable[[int], float] | float], _schedules]
Milestones = Annotated[Sequence[int], increasing(1, repeated=False)]
Shape = Annotated[Literal["linear", "cosine", "1-sqrt"], one_of("linear", "cosine", "1-sqrt")]

# The part of the way that is left after the part x of a decay, from 1 at x = 0 to 0 at x = 1. A warm-up is the decay
# backwards: 1 - left(x) for the linear one and the cosine, and likewise as the trainer has it for 1-sqrt.
LEFT: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
}
CLIMBED: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 * (1.0 - math.cos(math.pi * x)),
    "1-sqrt": lambda x: 1.0 - math.sqrt(1.0 - x),
}

RUNS = {"cosine", "linear", "one_cycle", "one_cycle_momentum", "polynomial", "warmup_stable_decay"}
"""The schedules whose ``steps`` are the length of a run."""


@schedule
def warmup(schedule: AnySchedule, steps: Steps, start: Value = 0.0, warmup_type: Shape = "linear") -> Curve:
    """A warm-up in front of any schedule, which begins when the warm-up is over.

        start + (schedule(0) - start) · k / steps    for k < steps
        schedule(k - steps)                          from then on

    schedule: a schedule, any other function of the step, or a number.
    steps: how many steps the warm-up takes; the trainer's ``num_warmup_steps``, optax's ``warmup_steps``. The
        schedule's own steps come on top: ``warmup(cosine(1e-3, 9_000), 1_000)`` is at 0 after 10,000.
    start: the number at step 0; optax's ``init_value``. With 0 a step of SGD or Adam changes nothing.
    warmup_type: the way up: "linear"; "cosine", half a wave; "1-sqrt", 1 - sqrt(1 - k / steps), slow at first; the
        trainer's.

    optax's warmup_*_schedule, Keras' ``warmup_steps``, the trainer's ``warmup_steps``. Goyal et al. 2017,
    arXiv:1706.02677.
    """
    if isinstance(schedule, Schedule) and schedule.name in RUNS and steps > schedule.arguments["steps"]:
        raise ValueError(
            f"steps: a warm-up of {steps} steps is longer than the {schedule.arguments['steps']} steps of the "
            f"{schedule.name} behind it; pass fewer, or, if that is meant, "
            f"sequential([linear({start!r}, {steps}, end={schedule(0)!r}), {schedule!r}], [{steps}])"
        )
    run = _curve_of(schedule)
    rise = float(run(0)) - start
    if warmup_type == "linear":
        return lambda step: start + rise * (step / steps) if step < steps else run(step - steps)
    climbed = CLIMBED[warmup_type]
    return lambda step: start + rise * climbed(step / steps) if step < steps else run(step - steps)


@schedule
def warmup_stable_decay(
    value: Value,
    steps: Steps,
    warmup_steps: StepsOrZero,
    decay_steps: StepsOrZero,
    start: Value = 0.0,
    end: Value = 0.0,
    warmup_type: Shape = "linear",
    decay_type: Shape = "cosine",
) -> Curve:
    """Up, level, down: the level part can be made longer without planning the end of the run.

        start + (value - start) · up(k / warmup_steps)        for k < warmup_steps
        value                                                 up to steps - decay_steps
        end + (value - end) · left(j / decay_steps)           for j = k - (steps - decay_steps)
        end                                                   from steps on

    value: the number of the level part.
    steps: the length of the run in all; the trainer's ``num_training_steps``.
    warmup_steps: how many of them go up; the trainer's ``num_warmup_steps``.
    decay_steps: how many of them go down; the trainer's ``num_decay_steps``.
    start: the number at step 0; in the trainer ``min_lr_ratio`` · value.
    end: the number from step ``steps`` on; in the trainer ``min_lr_ratio`` · value.
    warmup_type: the way up: "linear"; "cosine", half a wave; "1-sqrt", 1 - sqrt(1 - x), slow at first; the
        trainer's.
    decay_type: the way down: "linear"; "cosine"; "1-sqrt", 1 - sqrt(x), fast at first; the trainer's.

    The trainer's "warmup_stable_decay". Hu et al. 2024, arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392.
    """
    if warmup_steps + decay_steps > steps:
        raise ValueError(
            f"warmup_steps: {warmup_steps} steps of warm-up and {decay_steps} of decay are longer than the run of "
            f"{steps} steps; together they must be at most steps"
        )
    climbed, left = CLIMBED[warmup_type], LEFT[decay_type]
    rise, fall, turn = value - start, value - end, steps - decay_steps

    def curve(step: int) -> float:
        if step < warmup_steps:
            return start + rise * climbed(step / warmup_steps)
        if step < turn:
            return value
        if step < steps:
            return end + fall * left((step - turn) / decay_steps)
        return end

    return curve


@schedule
def sequential(schedules: Schedules, milestones: Milestones) -> Curve:
    """One schedule after the other, each counting from its own beginning.

        schedules[i](k - milestones[i - 1])    for milestones[i - 1] <= k < milestones[i]

    schedules: schedules, other functions of the step, or numbers; optax's ``schedules``, torch's ``schedulers``.
    milestones: the first steps of all but the first schedule, increasing; torch's ``milestones``, optax's
        ``boundaries``.

    torch's SequentialLR, optax's join_schedules. There torch's MultiplicativeLR goes on from what it finds; here
    it begins with its own number, as all others do.
    """
    if len(milestones) != len(schedules) - 1:
        raise ValueError(
            f"milestones: {len(schedules)} schedules need {len(schedules) - 1} of them, got {len(milestones)}; "
            "pass the first step of every schedule but the first"
        )
    parts = [(_curve_of(part), begin) for part, begin in zip(schedules, (0, *milestones), strict=True)]

    def curve(step: int) -> float:
        part, begin = parts[bisect_right(milestones, step)]
        return part(step - begin)

    return curve


@schedule
def chained(schedules: Schedules) -> Curve:
    """The product of schedules.

        schedules[0](k) · schedules[1](k) ⋯

    schedules: schedules, other functions of the step, or numbers; torch's ``schedulers``. Give the learning rate
        to the first and 1.0 to the others: ``chained([cosine(1e-3, 10_000), linear(0.1, 500, end=1.0)])``.

    torch's ChainedScheduler of schedules that multiply. A `ReduceLROnPlateau` of 1.0 may be among them.
    """
    curves = [_curve_of(part) for part in schedules]
    if len(curves) == 2:
        one, other = curves
        return lambda step: one(step) * other(step)

    def curve(step: int) -> float:
        product = 1.0
        for part in curves:
            product *= part(step)
        return product

    return curve


def _curve_of(part: Any) -> Curve:
    """The curve itself, whose step need not be checked again; floats from a function of the user's."""
    if isinstance(part, Schedule):
        return part._curve
    return lambda step: float(part(step))
