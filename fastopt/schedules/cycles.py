"""Schedules that go up and down: torch's periodic cosine, warm restarts, one-cycle, cyclic."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

from fastopt.algorithm import power
from fastopt.schedules.arguments import (
    Flag,
    OptionalSteps,
    Positive,
    Steps,
    UnitInterval,
    Value,
    number_in,
    one_of,
)
from fastopt.schedules.schedule import Curve, schedule

Strategy = Annotated[Literal["cos", "linear"], one_of("cos", "linear")]
Mode = Annotated[
    Literal["triangular", "triangular2", "exp_range"], one_of("triangular", "triangular2", "exp_range")
]
OneOrMore = Annotated[float, number_in(1)]


@schedule
def cosine_annealing(value: Value, steps: Steps, end: Value = 0.0) -> Curve:
    """A wave of the cosine that never ends: down, up again, down.

        end + (value - end) · (1 + cos(π · k / steps)) / 2

    value: the number at step 0, and again at 2 · steps.
    steps: how many steps the way down takes, and as many the way up; torch's ``T_max``.
    end: the number at the bottom; torch's ``eta_min``.

    torch's CosineAnnealingLR. To stay at the bottom: `cosine`; to jump up from there: `cosine_warm_restarts`.
    """
    half = 0.5 * (value - end)
    cos, pi, period = math.cos, math.pi, 2 * steps
    return lambda step: end + half * (1.0 + cos(pi * (step % period / steps)))


@schedule
def cosine_warm_restarts(
    value: Value, steps: OneOrMore, mult: OneOrMore = 1.0, end: Value = 0.0, gamma: Value = 1.0
) -> Curve:
    """Half waves of the cosine, one after the other: down, and back up in one jump.

        end + (value - end) · gamma ** n · (1 + cos(π · j / (steps · mult ** n))) / 2
        at step j of half wave n, both from 0 on

    value: the number at step 0.
    steps: the length of the first half wave; torch's ``T_0``. At least 1; it may have a fraction.
    mult: how many times as long each is as the one before; torch's ``T_mult``. At least 1.
    end: the number that each goes down to; torch's ``eta_min``.
    gamma: how much of its height each keeps of the one before; Keras' ``m_mul``. At least 0.

    torch's CosineAnnealingWarmRestarts, Keras' CosineDecayRestarts, the trainer's "cosine_with_restarts". SGDR:
    Loshchilov & Hutter 2016, arXiv:1608.03983.
    """
    half = 0.5 * (value - end)
    cos, pi = math.cos, math.pi
    if mult == 1.0:

        def equal(step: int) -> float:
            wave, j = divmod(step, steps)
            return end + half * power(gamma, wave) * (1.0 + cos(pi * (j / steps)))

        def undamped(step: int) -> float:
            return end + half * (1.0 + cos(pi * (step % steps / steps)))

        return undamped if gamma == 1.0 else equal

    log_mult = math.log(mult)

    def begin_of(wave: int) -> float:
        return steps * ((power(mult, wave) - 1.0) / (mult - 1.0))  # the sum of a geometric series

    def wave_at(step: int) -> tuple[float, float, float, float]:
        wave = int(math.log1p(step / steps * (mult - 1.0)) / log_mult)
        while step < begin_of(wave):  # rounding may have missed by one
            wave -= 1
        while step >= begin_of(wave + 1):
            wave += 1
        return begin_of(wave), begin_of(wave + 1), steps * power(mult, wave), half * power(gamma, wave)

    last = wave_at(0)

    def growing(step: int) -> float:
        nonlocal last
        begin, after, length, height = last
        if not begin <= step < after:
            begin, after, length, height = last = wave_at(step)
        return end + height * (1.0 + cos(pi * ((step - begin) / length)))

    return growing


@schedule
def one_cycle(
    peak: Value,
    steps: Steps,
    pct_start: UnitInterval = 0.3,
    anneal_strategy: Strategy = "cos",
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
    three_phase: Flag = False,
) -> Curve:
    """Up to a peak and down to nearly nothing: one cycle for the whole run.

        peak / div_factor                       at step 0
        peak                                    at step pct_start · steps - 1
        peak / div_factor / final_div_factor    from step steps - 1 on

    peak: the highest number; torch's ``max_lr``, optax's ``peak_value``.
    steps: the length of the run; torch's ``total_steps``, optax's ``transition_steps``.
    pct_start: the part of the run that goes up, 0 to 1; torch's ``pct_start``.
    anneal_strategy: the shape of the ways: "cos" is half a wave of the cosine, "linear" a straight line; torch's.
    div_factor: how many times the peak is above the first number; torch's ``div_factor``. Above 0.
    final_div_factor: how many times the first number is above the last; torch's ``final_div_factor``. Above 0.
    three_phase: go down as long as up, to the first number, and only then to the last; torch's ``three_phase``.

    torch's OneCycleLR; momentum goes the other way with `one_cycle_momentum`. Smith & Topin 2017,
    arXiv:1708.07120.
    """
    first = peak / div_factor
    return _phases((first, peak, first, first / final_div_factor), steps, pct_start, anneal_strategy, three_phase)


@schedule
def one_cycle_momentum(
    low: Value = 0.85,
    high: Value = 0.95,
    *,
    steps: Steps,
    pct_start: UnitInterval = 0.3,
    anneal_strategy: Strategy = "cos",
    three_phase: Flag = False,
) -> Curve:
    """The momentum that goes with `one_cycle`: down while the learning rate goes up, and back.

        high    at step 0
        low     at step pct_start · steps - 1
        high    from step steps - 1 on (with three_phase from step 2 · pct_start · steps - 2 on)

    low: the momentum at the learning rate's peak; torch's ``base_momentum``.
    high: the momentum at the start and at the end; torch's ``max_momentum``.
    steps, pct_start, anneal_strategy, three_phase: as for `one_cycle`.

    For ``momentum``, or the first of ``betas``. torch's OneCycleLR with ``cycle_momentum=True``.
    """
    _check_order(low, high)
    return _phases((high, low, high, high), steps, pct_start, anneal_strategy, three_phase)


def _phases(
    numbers: tuple[float, float, float, float], steps: int, pct_start: float, strategy: str, three_phase: bool
) -> Curve:
    """The curve through the first number, the peak, the first number again (with three phases) and the last."""
    first, peak, again, last = numbers
    ends, targets = [pct_start * steps - 1.0, steps - 1.0], [peak, last]
    if three_phase:
        if pct_start > 0.5:
            raise ValueError(f"pct_start: {pct_start!r} leaves no third phase; with three_phase it is at most 0.5")
        ends.insert(1, 2.0 * pct_start * steps - 2.0)
        targets.insert(1, again)
    phases = []
    begin, source = 0.0, first
    for stop, target in zip(ends, targets, strict=True):
        if stop > begin:
            phases.append((stop, begin, stop - begin, source, target))
        elif stop == 0.0:  # no width: the target is the number of step 0
            phases.append((stop, begin, 1.0, target, target))
        # else it ended before step 0
        begin, source = stop, target
    cos, pi, straight = math.cos, math.pi, strategy == "linear"

    def curve(step: int) -> float:
        for stop, begin, width, source, target in phases:
            if step <= stop:
                passed = (step - begin) / width
                if straight:
                    return source + (target - source) * passed
                return target + 0.5 * (source - target) * (1.0 + cos(pi * passed))
        return last

    return curve


@schedule
def cyclic(
    low: Value,
    high: Value,
    step_size_up: Steps = 2000,
    step_size_down: OptionalSteps = None,
    mode: Mode = "triangular",
    gamma: Positive = 1.0,
) -> Curve:
    """Triangles between two numbers, again and again.

        low + (high - low) · t · height

    where t goes from 0 up to 1 and back in every cycle.

    low: the number at the ends of a cycle; torch's ``base_lr``.
    high: the number at the top of a cycle of full height; torch's ``max_lr``.
    step_size_up: how many steps the way up takes; torch's ``step_size_up``.
    step_size_down: how many steps the way down takes; torch's ``step_size_down``. None: as many.
    mode: the height of the triangles. "triangular": 1; "triangular2": half that of the cycle before; "exp_range":
        gamma ** k. torch's ``mode``.
    gamma: of "exp_range" only; torch's ``gamma``. Above 0.

    torch's CyclicLR; momentum goes the other way with `cyclic_momentum`. Smith 2015, arXiv:1506.01186.
    """
    _check_order(low, high)
    wave = _triangles(step_size_up, step_size_down, mode, gamma)
    height = high - low
    return lambda step: low + height * wave(step)


@schedule
def cyclic_momentum(
    low: Value = 0.8,
    high: Value = 0.9,
    step_size_up: Steps = 2000,
    step_size_down: OptionalSteps = None,
    mode: Mode = "triangular",
    gamma: Positive = 1.0,
) -> Curve:
    """The momentum that goes with `cyclic`: low where the learning rate is high.

        high - (high - low) · t · height

    low: the momentum at the top of the learning rate's cycle; torch's ``base_momentum``.
    high: the momentum at the ends of a cycle; torch's ``max_momentum``.
    step_size_up, step_size_down, mode, gamma: as for `cyclic`.

    For ``momentum``, or the first of ``betas``. torch's CyclicLR with ``cycle_momentum=True``.
    """
    _check_order(low, high)
    wave = _triangles(step_size_up, step_size_down, mode, gamma)
    height = high - low
    return lambda step: high - height * wave(step)


def _triangles(up: int, down: int | None, mode: str, gamma: float) -> Callable[[int], float]:
    """Goes from 0 up to the cycle's height and back."""
    if gamma != 1.0 and mode != "exp_range":
        raise ValueError(f'gamma: has no effect with mode={mode!r}; leave it out, or pass mode="exp_range"')
    falling = up if down is None else down
    period = up + falling

    def triangular(step: int) -> float:
        j = step % period
        return j / up if j <= up else (period - j) / falling

    if mode == "triangular2":
        return lambda step: triangular(step) * power(0.5, step // period)
    if mode == "exp_range":
        return lambda step: triangular(step) * power(gamma, step)
    return triangular


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low: {low!r} is above high, {high!r}; swap them")
