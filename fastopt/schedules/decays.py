"""Schedules that start from a number and change it: constant, lines, powers, stairs, functions of the user's."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated

from fastopt.algorithm import power as raised
from fastopt.schedules.arguments import (
    Bound,
    Flag,
    Function,
    OptionalSteps,
    Positive,
    Steps,
    Value,
    increasing,
)
from fastopt.schedules.schedule import Curve, schedule

Milestones = Annotated[Sequence[int], increasing(1, repeated=True)]


@schedule
def constant(value: Value, factor: Bound = None, steps: OptionalSteps = None) -> Curve:
    """The same number at every step; with factor and steps another one at first.

        value · factor   for k < steps
        value            from then on

    value: the number; optax's ``value``.
    factor: multiplies the number during the first steps; torch's ``factor`` (1/3 there). At least 0.
    steps: how many steps it does so; torch's ``total_iters`` (5 there).

    torch's ConstantLR, optax's constant_schedule, the trainer's "constant".
    """
    if factor is None and steps is None:
        return lambda step: value
    if factor is None:
        raise ValueError("factor: missing; pass factor and steps together, or neither")
    if steps is None:
        raise ValueError("steps: missing; pass factor and steps together, or neither")
    first = value * factor
    return lambda step: first if step < steps else value


@schedule
def linear(value: Value, steps: Steps, end: Value = 0.0) -> Curve:
    """A straight line from one number to another, which then stays.

        value + (end - value) · min(k, steps) / steps

    value: the number at step 0; optax's ``init_value``, torch's lr · ``start_factor``.
    steps: how many steps the way takes; optax's ``transition_steps``, torch's ``total_iters``.
    end: the number from step ``steps`` on; optax's ``end_value``, torch's lr · ``end_factor``. It may lie above.

    torch's LinearLR, optax's linear_schedule, the trainer's "linear" (behind `warmup`).
    """
    change = end - value
    return lambda step: value + change * (step / steps) if step < steps else end


@schedule
def polynomial(value: Value, steps: Steps, power: Positive = 1.0, end: Value = 0.0, cycle: Flag = False) -> Curve:
    """A power of the way that is left.

        end + (value - end) · (1 - min(k, steps) / steps) ** power

    value: the number at step 0; optax's ``init_value``.
    steps: how many steps the way takes; torch's ``total_iters``, optax's ``transition_steps``.
    power: 1 is a straight line, 2 falls fast and levels out, 0.5 falls late; torch's and optax's ``power``.
        Above 0.
    end: the number from step ``steps`` on; optax's ``end_value``, the trainer's ``lr_end`` (1e-7 there).
    cycle: instead of staying at the end take twice as many steps in all, then three times as many, and so on, so
        that the number goes up again at every multiple of ``steps``; Keras' ``cycle``.

    torch's PolynomialLR, optax's polynomial_schedule, Keras' PolynomialDecay, the trainer's "polynomial".
    """
    height, pow = value - end, math.pow
    if not cycle:
        return lambda step: end + height * pow(1.0 - step / steps, power) if step < steps else end

    def curve(step: int) -> float:
        rounds = -(-step // steps) or 1
        return end + height * pow(1.0 - step / (rounds * steps), power)

    return curve


@schedule
def cosine(value: Value, steps: Steps, end: Value = 0.0, power: Positive = 1.0, cycles: Positive = 0.5) -> Curve:
    """Half a wave of the cosine from one number to another, which then stays.

        end + (value - end) · ((1 + cos(2π · cycles · min(k, steps) / steps)) / 2) ** power

    value: the number at step 0; optax's ``init_value``.
    steps: how many steps the way takes; optax's ``decay_steps``.
    end: the number at the bottom of the wave; optax's ``alpha`` · value, the trainer's ``min_lr``. It may lie
        above.
    power: bends the wave, 2 falls sooner, 0.5 later; optax's ``exponent``. Above 0.
    cycles: waves in all: 0.5 goes down, 1 goes down and up; the trainer's ``num_cycles``.

    optax's cosine_decay_schedule, Keras' CosineDecay, the trainer's "cosine" and "cosine_with_min_lr" (behind
    `warmup`). torch's wave, which goes on for ever: `cosine_annealing`. Loshchilov & Hutter 2016,
    arXiv:1608.03983.
    """
    height = value - end
    cos, angle = math.cos, 2.0 * math.pi * cycles
    last = end + height * math.pow(0.5 * (1.0 + cos(angle)), power)
    if power == 1.0:
        half = 0.5 * height
        return lambda step: end + half * (1.0 + cos(angle * (step / steps))) if step < steps else last
    return lambda step: (
        end + height * math.pow(0.5 * (1.0 + cos(angle * (step / steps))), power) if step < steps else last
    )


@schedule
def exponential(value: Value, gamma: Value, steps: Steps = 1, end: Bound = None) -> Curve:
    """Falls by the same factor in every step.

        value · gamma ** (k / steps),   and not beyond end

    value: the number at step 0; optax's ``init_value``.
    gamma: the factor; torch's ``gamma``, optax's and Keras' ``decay_rate``. At least 0; above 1 it rises.
    steps: how many steps the factor is for; optax's ``transition_steps``, Keras' ``decay_steps``. torch: 1.
    end: where it stops, a lower bound for gamma below 1, else an upper one; optax's ``end_value``. None: nowhere.

    torch's ExponentialLR, optax's exponential_decay, Keras' ExponentialDecay. In stairs: `step`.
    """
    if steps == 1:
        return _bounded(value, gamma, end, lambda step: value * raised(gamma, step))
    return _bounded(value, gamma, end, lambda step: value * raised(gamma, step / steps))


@schedule
def step(value: Value, step_size: Steps, gamma: Value = 0.1, end: Bound = None) -> Curve:
    """Falls by a factor every so many steps.

        value · gamma ** (k // step_size),   and not beyond end

    value: the number of the first stair.
    step_size: how many steps a stair takes; torch's ``step_size``, optax's ``transition_steps``.
    gamma: the factor from one stair to the next; torch's ``gamma``, optax's ``decay_rate``. At least 0.
    end: where it stops, a lower bound for gamma below 1, else an upper one; optax's ``end_value``. None: nowhere.

    torch's StepLR, optax's exponential_decay and Keras' ExponentialDecay with ``staircase=True``.
    """
    return _bounded(value, gamma, end, lambda step: value * raised(gamma, step // step_size))


def _bounded(value: float, gamma: float, end: float | None, curve: Curve) -> Curve:
    if end is None:
        return curve
    if gamma < 1.0:
        if end > value:
            raise ValueError(
                f"end: {end!r} is above value, {value!r}, which falls; pass a lower end or gamma above 1"
            )
        return lambda step: max(curve(step), end)
    if end < value:
        raise ValueError(
            f"end: {end!r} is below value, {value!r}, which does not fall; pass gamma below 1 or a higher end"
        )
    return lambda step: min(curve(step), end)


@schedule
def multi_step(value: Value, milestones: Milestones, gamma: Value = 0.1) -> Curve:
    """Falls by a factor at chosen steps.

        value · gamma ** (how many of the milestones are at most k)

    value: the number before the first milestone.
    milestones: the steps at which it falls, in order; torch's ``milestones``. One that is there twice counts
        twice.
    gamma: the factor; torch's ``gamma``. At least 0.

    torch's MultiStepLR. Any numbers in any order (optax's piecewise_constant_schedule): `sequential` of
    `constant`.
    """
    if not milestones:
        raise ValueError("milestones: there are none; pass at least one step, or use constant")
    stairs = [value * raised(gamma, passed) for passed in range(len(milestones) + 1)]
    return lambda step: stairs[bisect_right(milestones, step)]


@schedule
def inverse_sqrt(value: Value, timescale: Positive = 10_000.0) -> Curve:
    """Falls with the square root of the step.

        value / sqrt(1 + k / timescale)

    value: the number at step 0.
    timescale: after so many steps it is at 71%, after three times as many at half; the trainer's ``timescale``
        (the length of the warm-up there, if there is one). Above 0.

    The trainer's "inverse_sqrt"; with `warmup` of W steps in front and ``timescale=W`` the schedule of Vaswani et
    al. 2017, arXiv:1706.03762.
    """
    sqrt = math.sqrt
    return lambda step: value / sqrt(1.0 + step / timescale)


@schedule
def inverse_time(value: Value, rate: Value, steps: Steps = 1, staircase: Flag = False) -> Curve:
    """Falls with the step: 1/t decay.

        value / (1 + rate · k / steps)

    value: the number at step 0.
    rate: at half after steps / rate steps; Keras' ``decay_rate``, the ``lr_decay`` of torch's Adagrad. At least 0.
    steps: how many steps the rate is for; Keras' ``decay_steps``.
    staircase: only at every multiple of ``steps``; Keras' ``staircase``.

    Keras' InverseTimeDecay. Robbins & Monro 1951.
    """
    if staircase:
        return lambda step: value / (1.0 + rate * (step // steps))
    return lambda step: value / (1.0 + rate * (step / steps))


@schedule
def lambda_(value: Value, function: Function) -> Curve:
    """A number times a function of the step.

        value · function(k)

    value: the number.
    function: given the step, 0 first, returns the factor; torch's ``lr_lambda``.

    torch's LambdaLR. Options take a function of the step by itself too; this one names the number apart.
    """
    return lambda step: float(value * function(step))


@schedule
def multiplicative(value: Value, function: Function) -> Curve:
    """A number times the product of the factors of all steps so far.

        value · function(1) · function(2) ⋯ function(k)

    value: the number at step 0.
    function: given a step, 1 first, returns the factor from the step before to it; torch's ``lr_lambda``. The same
        step must always get the same factor.

    torch's MultiplicativeLR. The product of the last step is kept, so that the next one costs one call; to start
    in the middle of a run costs one call for each step before, once. If you know the product: `lambda_`.
    """
    # Products at every 256th step, so that going back does not start from 0. All is worked out in the order of the
    # steps, so that the bits do not depend on which steps were asked for.
    marks = {0: value}
    last = (0, value)

    def curve(step: int) -> float:
        nonlocal last
        at, product = last
        mark = step - step % 256
        if at > step or (at < mark and mark in marks):
            at, product = mark, marks[mark]
        while at < step:
            at += 1
            product = float(product * function(at))
            if at % 256 == 0:
                marks[at] = product
        last = (at, product)
        return product

    return curve
