"""Schedules: the numbers of torch, optax, the trainer and Keras; the same bits after a resume; what is refused."""

# ruff: noqa: E501 - what is refused stands in a table, one case a line

import copy
import importlib.util
import inspect
import itertools
import json
import math
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from hypothesis import given, settings
from hypothesis import strategies as st
from own_process import in_a_new_process
from tracing import traced

import fastopt
from fastopt import schedules
from fastopt.schedules import (
    ReduceLROnPlateau,
    Schedule,
    chained,
    constant,
    cosine,
    cosine_annealing,
    cosine_warm_restarts,
    cyclic,
    cyclic_momentum,
    exponential,
    inverse_sqrt,
    inverse_time,
    linear,
    multi_step,
    multiplicative,
    one_cycle,
    one_cycle_momentum,
    polynomial,
    sequential,
    step,
    warmup,
    warmup_stable_decay,
)

STEPS = 1000
TOLERANCE = 1e-12

MAKERS = {name: getattr(schedules, name) for name in schedules.__all__ if name[0].islower()}

EXAMPLES_FOLDER = Path(__file__).parent.parent / "examples"


def drawn_schedules() -> Any:
    """The module that draws every schedule, under a name by which pickle finds its functions again."""
    spec = importlib.util.spec_from_file_location("drawn_schedules", EXAMPLES_FOLDER / "schedules.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DRAWN = drawn_schedules()

SAMPLES = [
    *(schedule for _, panels in DRAWN.KINDS.values() for panel in panels for schedule in panel.values()),
    # forms that are computed in a way of their own, and are not drawn
    linear(0.0, 300, end=0.1),
    polynomial(0.1, 150, 0.5, cycle=True),
    cosine(0.01, 700, end=0.1, power=1.5),
    cosine(0.1, 700, 0.01, cycles=1.75),
    exponential(0.1, 0.5, 70, end=0.01),
    exponential(0.1, 1.5, end=3.0),
    step(0.1, 90, 0.3, end=0.02),
    multi_step(0.1, [30, 30, 500]),
    cosine_annealing(0.1, 130, end=0.01),
    cosine_warm_restarts(0.1, 90, end=0.01),
    cosine_warm_restarts(0.1, 33.3, 1.0, gamma=0.7),
    cosine_warm_restarts(0.1, 30, 1.3),
    one_cycle(0.1, 900, 0.2, "linear", 10.0, 100.0, True),
    cyclic(0.01, 0.1, 60, 100),
    cyclic_momentum(step_size_up=60, mode="exp_range", gamma=0.999),
    warmup_stable_decay(0.1, 900, 100, 300, end=0.01, decay_type="1-sqrt"),
    warmup(0.1, 100, start=0.01, warmup_type="cosine"),
    sequential([0.01, linear(0.01, 100, 0.1), cosine(0.1, 500)], [50, 150]),
    chained([cosine(0.1, 900), linear(0.1, 100, end=1.0), step(1.0, 400)]),
]
"""Every schedule, in every form that is computed in a way of its own: those of the picture, and more."""

every_sample = pytest.mark.parametrize("schedule", SAMPLES, ids=repr)


def numbers(schedule: Callable[[int], float], count: int = STEPS) -> list[float]:
    return [schedule(k) for k in range(count)]


def made(code: str) -> Any:
    """What a line of code makes, with the names of fastopt.schedules."""
    return eval(code, {"math": math, "np": np, "fastopt": fastopt, **vars(schedules)})


def test_the_picture_has_every_schedule() -> None:
    panels = [panel for _, kind in DRAWN.KINDS.values() for panel in kind]
    assert {schedule.name for panel in panels for schedule in panel.values()} == MAKERS.keys()


# -- The numbers of other libraries --

TORCH = [
    # our line, torch's line, lr
    *(
        (f"lambda_({lr}, {f})", f"LambdaLR(opt, {f})", lr)
        for lr, f in [
            (0.1, "math.cos"),
            (1.0, "lambda k: 0.95**k"),
            (0.3, "lambda k: 1 / (1 + k)"),
            (2.0, "lambda k: k // 30"),
            (1e-3, "math.sqrt"),
        ]
    ),
    *(
        (f"multiplicative({lr}, {f})", f"MultiplicativeLR(opt, {f})", lr)
        for lr, f in [
            (0.1, "lambda k: 0.99"),
            (1.0, "math.tanh"),
            (0.3, "lambda k: 1 + 1 / k**2"),
            (2.0, "lambda k: 0.5 if k % 100 == 0 else 1.0"),
            (1e-3, "lambda k: k / (k + 1)"),
        ]
    ),
    *(
        (f"step({lr}, {size}, {gamma})", f"StepLR(opt, {size}, {gamma})", lr)
        for lr, size, gamma in [(0.1, 30, 0.1), (1.0, 1, 0.99), (0.3, 7, 1.01), (2.0, 2000, 0.5), (1e-3, 333, 0.0)]
    ),
    *(
        (f"multi_step({lr}, {at}, {gamma})", f"MultiStepLR(opt, {at}, {gamma})", lr)
        for lr, at, gamma in [
            (0.1, [30, 80], 0.1),
            (1.0, [1], 0.5),
            (0.3, [100, 100, 500], 0.3),
            (2.0, [*range(10, 1000, 10)], 0.9),
            (1e-3, [999, 2000], 3.0),
        ]
    ),
    *(
        (f"constant({lr}, {factor}, {n})", f"ConstantLR(opt, {factor}, {n})", lr)
        for lr, factor, n in [(0.1, 1 / 3, 5), (1.0, 0.5, 1), (0.3, 0.1, 500), (2.0, 1.0, 10), (1e-3, 0.7, 2000)]
    ),
    *(
        (f"linear({lr} * {a}, {n}, end={lr} * {b})", f"LinearLR(opt, {a}, {b}, {n})", lr)
        for lr, a, b, n in [
            (0.1, 1 / 3, 1.0, 5),
            (1.0, 1.0, 0.0, 900),
            (0.3, 0.1, 0.9, 333),
            (2.0, 0.5, 0.5, 10),
            (1e-3, 1e-3, 1.0, 2000),
        ]
    ),
    *(
        (f"exponential({lr}, {gamma})", f"ExponentialLR(opt, {gamma})", lr)
        for lr, gamma in [(0.1, 0.9), (1.0, 0.999), (0.3, 1.001), (2.0, 1.0), (1e-3, 0.5)]
    ),
    *(
        (f"polynomial({lr}, {n}, {power})", f"PolynomialLR(opt, {n}, {power})", lr)
        for lr, n, power in [(0.1, 5, 1.0), (1.0, 1000, 2.0), (0.3, 333, 0.5), (2.0, 900, 0.9), (1e-3, 2000, 3.0)]
    ),
    *(
        (f"cosine_annealing({lr}, {n}, {end})", f"CosineAnnealingLR(opt, {n}, {end})", lr)
        for lr, n, end in [(0.1, 100, 0.0), (1.0, 1000, 0.1), (0.3, 33, 0.01), (2.0, 1, 0.0), (1e-3, 700, 1e-5)]
    ),
    *(
        (f"cosine_warm_restarts({lr}, {n}, {m}, {end})", f"CosineAnnealingWarmRestarts(opt, {n}, {m}, {end})", lr)
        for lr, n, m, end in [
            (0.1, 10, 1, 0.0),
            (1.0, 10, 2, 0.1),
            (0.3, 33, 3, 0.0),
            (2.0, 1, 2, 0.5),
            (1.0, 900, 1, 0.0),
        ]
    ),
    *(
        (f"one_cycle({options})", f"OneCycleLR(opt, {options}, cycle_momentum=False)", 7.0)
        for options in [
            "0.1, 1000",
            "1.0, 1200, pct_start=0.45, anneal_strategy='linear', three_phase=True",
            "0.3, 1001, pct_start=0.1, div_factor=5.0, final_div_factor=10.0",
            "2.0, 1000, pct_start=1.0, anneal_strategy='linear'",
            "0.01, 1000, pct_start=0.0, three_phase=True",
        ]
    ),
    *(
        (f"cyclic({options})", f"CyclicLR(opt, {options}, cycle_momentum=False)", 7.0)
        for options in [
            "0.01, 0.1",
            "0.0, 1.0, 7, 13, mode='triangular2'",
            "0.001, 0.3, 100, 33, mode='exp_range', gamma=0.997",
            "0.1, 0.1, 5",
            "0.5, 2.0, 333, 1, mode='triangular'",
        ]
    ),
    *(
        (
            f"sequential([{ours}], {at})",
            f"SequentialLR(opt, [{theirs}], {at})",
            lr,
        )
        for lr, ours, theirs, at in [
            (
                0.1,
                "linear(0.01, 100, 0.1), cosine_annealing(0.1, 900)",
                "LinearLR(opt, 0.1, 1.0, 100), CosineAnnealingLR(opt, 900)",
                [100],
            ),
            (
                1.0,
                "constant(1.0, 0.1, 20), exponential(1.0, 0.99)",
                "ConstantLR(opt, 0.1, 20), ExponentialLR(opt, 0.99)",
                [20],
            ),
            (
                0.3,
                "exponential(0.3, 0.99), step(0.3, 30), polynomial(0.3, 300, 2.0)",
                "ExponentialLR(opt, 0.99), StepLR(opt, 30), PolynomialLR(opt, 300, 2.0)",
                [300, 600],
            ),
            (2.0, "step(2.0, 7), multi_step(2.0, [5, 9])", "StepLR(opt, 7), MultiStepLR(opt, [5, 9])", [1]),
            (
                1e-3,
                "cosine_annealing(1e-3, 50), cosine_warm_restarts(1e-3, 10, 2)",
                "CosineAnnealingLR(opt, 50), CosineAnnealingWarmRestarts(opt, 10, 2)",
                [50],
            ),
        ]
    ),
    *(
        (f"chained([{ours}])", f"ChainedScheduler([{theirs}], opt)", lr)
        for lr, ours, theirs in [
            (
                0.1,
                "constant(0.1, 0.1, 20), exponential(1.0, 0.99)",
                "ConstantLR(opt, 0.1, 20), ExponentialLR(opt, 0.99)",
            ),
            (1.0, "linear(0.2, 50, 1.0), step(1.0, 100)", "LinearLR(opt, 0.2, 1.0, 50), StepLR(opt, 100)"),
            (
                0.3,
                "multi_step(0.3, [10, 20]), exponential(1.0, 0.999), linear(0.5, 300, 1.0)",
                "MultiStepLR(opt, [10, 20]), ExponentialLR(opt, 0.999), LinearLR(opt, 0.5, 1.0, 300)",
            ),
            (
                2.0,
                "multiplicative(2.0, math.tanh), polynomial(1.0, 900)",
                "MultiplicativeLR(opt, math.tanh), PolynomialLR(opt, 900)",
            ),
            (1e-3, "polynomial(1e-3, 2000, 3.0)", "PolynomialLR(opt, 2000, 3.0)"),
        ]
    ),
]


def torch_numbers(line: str, lr: float) -> list[dict[str, Any]]:
    """The options of torch's group at every step."""
    import torch

    opt = torch.optim.SGD([torch.zeros(1)], lr, momentum=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's SequentialLR warns of a parameter that it uses itself
        scheduler = eval(line, {"math": math, "opt": opt, **vars(torch.optim.lr_scheduler)})
        found = []
        for k in range(STEPS):
            found.append(dict(opt.param_groups[0]))
            opt.step()
            if k < STEPS - 1:
                scheduler.step()
    return found


@pytest.mark.parametrize(("ours", "theirs", "lr"), TORCH, ids=[theirs for _, theirs, _ in TORCH])
def test_the_numbers_are_those_of_torch(ours: str, theirs: str, lr: float) -> None:
    pytest.importorskip("torch")
    expected = [float(group["lr"]) for group in torch_numbers(theirs, lr)]
    np.testing.assert_allclose(numbers(made(ours)), expected, rtol=TOLERANCE, atol=TOLERANCE * max(expected))


def test_torch_has_no_other_schedules_and_each_has_five_settings() -> None:
    torch = pytest.importorskip("torch")
    tested = [theirs.partition("(")[0] for _, theirs, _ in TORCH]
    names = {name for name in torch.optim.lr_scheduler.__all__ if name not in ("LRScheduler", "ReduceLROnPlateau")}
    assert set(tested) == names
    assert all(tested.count(name) == 5 for name in names)


CYCLE = "base_momentum={low}, max_momentum={high}"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *(
            (
                f"one_cycle_momentum({low}, {high}, steps={n}{options})",
                f"OneCycleLR(opt, 1.0, {n}{options}, {momenta})",
            )
            for low, high, n, options in [
                (0.85, 0.95, 1000, ""),
                (0.5, 0.9, 1200, ", pct_start=0.45, anneal_strategy='linear', three_phase=True"),
                (0.0, 0.99, 1001, ", pct_start=0.1"),
                (0.85, 0.95, 1000, ", pct_start=1.0, anneal_strategy='linear'"),
                (0.8, 0.9, 1000, ", pct_start=0.25, three_phase=True"),
            ]
            for momenta in [CYCLE.format(low=low, high=high)]
        ),
        *(
            (f"cyclic_momentum({low}, {high}{options})", f"CyclicLR(opt, 0.1, 1.0{options}, {momenta})")
            for low, high, options in [
                (0.8, 0.9, ""),
                (0.5, 0.9, ", 7, 13, mode='triangular2'"),
                (0.0, 0.99, ", 100, 33, mode='exp_range', gamma=0.997"),
                (0.9, 0.9, ", 5"),
                (0.85, 0.95, ", 333, 1"),
            ]
            for momenta in [CYCLE.format(low=low, high=high)]
        ),
    ],
)
def test_the_momenta_are_those_of_torch(ours: str, theirs: str) -> None:
    pytest.importorskip("torch")
    expected = [float(group["momentum"]) for group in torch_numbers(theirs, 1.0)]
    np.testing.assert_allclose(numbers(made(ours)), expected, rtol=0, atol=TOLERANCE)


def test_the_default_momenta_are_those_of_torch() -> None:
    pytest.importorskip("torch")
    for ours, theirs in [
        (one_cycle_momentum(steps=1000), "OneCycleLR(opt, 1.0, 1000)"),
        (cyclic_momentum(), "CyclicLR(opt, 0.1, 1.0)"),
    ]:
        expected = [float(group["momentum"]) for group in torch_numbers(theirs, 1.0)]
        np.testing.assert_allclose(numbers(ours), expected, rtol=0, atol=TOLERANCE)


ELSEWHERE = json.loads(Path(__file__).with_name("schedules_elsewhere.json").read_text())


@pytest.mark.parametrize("line", ELSEWHERE, ids=lambda line: f"{line['library']} {line['call']}")
def test_the_numbers_are_those_of_optax_and_the_trainer(line: dict[str, Any]) -> None:
    """As schedules_elsewhere.py stored them."""
    schedule = made(line["ours"])
    found = [schedule(k) for k in line["steps"]]
    scale = max(line["values"]) or 1.0
    np.testing.assert_allclose(found, line["values"], rtol=TOLERANCE, atol=TOLERANCE * scale)


def test_each_schedule_of_optax_and_the_trainer_has_five_settings() -> None:
    names = [(line["library"], re.split(r"\W", line["call"])[0]) for line in ELSEWHERE]
    assert all(names.count(name) >= 5 for name in names)


@pytest.mark.parametrize(
    ("ours", "keras"),
    [
        (exponential(0.1, 0.5, 70), lambda k: 0.1 * 0.5 ** (k / 70)),
        (step(0.1, 70, 0.5), lambda k: 0.1 * 0.5 ** math.floor(k / 70)),
        (polynomial(0.1, 300, 2.0, 0.01), lambda k: (0.1 - 0.01) * (1 - min(k, 300) / 300) ** 2.0 + 0.01),
        (
            polynomial(0.1, 300, 0.5, 0.01, cycle=True),
            lambda k: (0.1 - 0.01) * (1 - k / (300 * (math.ceil(k / 300) or 1))) ** 0.5 + 0.01,
        ),
        (inverse_time(0.1, 0.3, 40), lambda k: 0.1 / (1 + 0.3 * k / 40)),
        (inverse_time(0.1, 0.3, 40, staircase=True), lambda k: 0.1 / (1 + 0.3 * math.floor(k / 40))),
        (
            cosine(0.1, 300, 0.1 * 0.2),
            lambda k: 0.1 * ((1 - 0.2) * 0.5 * (1 + math.cos(math.pi * min(k, 300) / 300)) + 0.2),
        ),
        (
            sequential([constant(1.0), constant(0.5), constant(0.1)], [101, 201]),
            lambda k: 1.0 if k <= 100 else 0.5 if k <= 200 else 0.1,
        ),
    ],
    ids=lambda argument: repr(argument) if isinstance(argument, Schedule) else "",
)
def test_the_numbers_are_those_of_keras(ours: Schedule, keras: Callable[[int], float]) -> None:
    """By its formulas; its own numbers are float32."""
    np.testing.assert_allclose(numbers(ours), numbers(keras), rtol=TOLERANCE)


@pytest.mark.parametrize(("mult", "gamma"), [(2.0, 1.0), (2.0, 0.5), (1.0, 0.9), (1.5, 0.8), (3.0, 1.1)])
def test_the_restarts_are_those_of_keras(mult: float, gamma: float) -> None:
    def keras(k: int) -> float:
        part = k / 40
        if mult == 1.0:
            wave = math.floor(part)
            part -= wave
        else:
            # at the very restart the logarithm may be one too low by rounding
            wave = math.floor(math.log(1 - part * (1 - mult)) / math.log(mult) + 1e-12)
            part = (part - (1 - mult**wave) / (1 - mult)) / mult**wave
        cosine_decayed = 0.5 * gamma**wave * (1 + math.cos(math.pi * part))
        return 0.1 * ((1 - 0.2) * cosine_decayed + 0.2)

    ours = cosine_warm_restarts(0.1, 40, mult, end=0.1 * 0.2, gamma=gamma)
    np.testing.assert_allclose(numbers(ours), numbers(keras), rtol=TOLERANCE)


# -- Values: print, compare, pickle, resume --


@every_sample
def test_a_schedule_prints_as_the_code_that_makes_it(schedule: Schedule) -> None:
    code = repr(schedule)
    again = eval(code, {**vars(DRAWN), **vars(schedules)})
    assert again == schedule
    assert repr(again) == code


def test_what_a_schedule_prints() -> None:
    assert repr(warmup(cosine(np.float32(0.5), np.int64(9_000), end=0), 1_000)) == (
        "warmup(cosine(0.5, 9000), 1000)"
    )
    assert repr(one_cycle_momentum(steps=10)) == "one_cycle_momentum(steps=10)"
    assert repr(sequential((1, cosine(1, 9)), (3,))) == "sequential([constant(1.0), cosine(1.0, 9)], [3])"


@every_sample
def test_schedules_are_equal_when_their_arguments_are(schedule: Schedule) -> None:
    again = MAKERS[schedule.name](**schedule.arguments)
    assert again is not schedule
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert [other for other in SAMPLES if other == schedule] == [schedule]
    assert schedule != 0.1


@every_sample
def test_copies_are_equal_and_give_the_same_bits(schedule: Schedule) -> None:
    for again in (copy.copy(schedule), copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert again == schedule
        assert numbers(again) == numbers(schedule)


def test_a_schedule_cannot_be_changed() -> None:
    schedule = cosine(0.1, 100)
    assert dict(schedule.arguments) == {"value": 0.1, "steps": 100, "end": 0.0, "power": 1.0, "cycles": 0.5}
    with pytest.raises(TypeError):
        schedule.arguments["value"] = 1.0  # type: ignore[index]
    with pytest.raises(AttributeError):
        schedule.value = 1.0  # type: ignore[attr-defined]


def test_numbers_of_any_kind_make_the_same_schedule() -> None:
    half = [0.5, np.float64(0.5), np.float32(0.5), np.array(0.5), ml_dtypes.bfloat16(0.5), np.longdouble(0.5)]
    assert {cosine(value, 10) for value in half} == {cosine(0.5, 10)}
    assert {cosine(0.5, steps) for steps in (10, np.int8(10), np.uint64(10), np.array(10))} == {cosine(0.5, 10)}
    assert cosine(0.5, 10)(np.int64(3)) == cosine(0.5, 10)(3)
    assert type(cosine(np.float32(0.5), 10)(3)) is float


def test_tensors_of_torch_are_numbers() -> None:
    torch = pytest.importorskip("torch")
    assert cosine(torch.tensor(0.5), torch.tensor(10)) == cosine(0.5, 10)


def second_halves(samples: list[Schedule]) -> list[list[float]]:
    """The numbers of the second half of a run, then of the first half backwards."""
    steps = [*range(500, 1000), *reversed(range(500))]
    return [[schedule(k) for k in steps] for schedule in samples]


def test_a_new_process_has_the_same_bits(tmp_path: Path) -> None:
    """One that sees the second half of a run only, and goes backwards then."""
    for schedule, found in zip(SAMPLES, in_a_new_process(second_halves, SAMPLES, tmp_path), strict=True):
        whole = numbers(copy.deepcopy(schedule))
        assert found == whole[500:] + whole[499::-1], schedule


# -- Schedules in optimizers --


class Negative:
    """A schedule with the sign changed: schedules themselves are not negative."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def __call__(self, step: int) -> float:
        return -float(self.schedule(step))


def scheduled(variant: table.Variant) -> list[dict[str, Any]]:
    """For each option of a class that takes callables, options of which it is a schedule; and all at once."""
    every, found = dict(variant.options), []
    for name in table.takes_callables(variant.cls):
        value = variant.hyper[name] or 0.3  # those of 0 are to have an effect too
        if isinstance(value, tuple):
            schedule: Any = tuple(linear(x, 6 + i, 0.95 * x) for i, x in enumerate(y or 0.3 for y in value))
            found += [{name: (schedule[0], *value[1:])}, {name: (*value[:-1], schedule[-1])}]
        else:
            # a schedule goes down to a quarter, which some options may not be
            size = abs(value) * (1 if table.lies_within(table.kinds(variant.cls, name)[0], value / 4) else 4)
            schedule = warmup(cosine(size, 10, size / 2), 3, size / 4)
            schedule = schedule if value > 0 else Negative(schedule)
        every[name] = schedule
        found.append({name: schedule})
    return [variant.options | one for one in (*found, every)]


def now(options: dict[str, Any], k: int) -> dict[str, Any]:
    """The numbers of options at a step."""

    def number(value: Any) -> Any:
        return tuple(map(number, value)) if isinstance(value, tuple) else value(k) if callable(value) else value

    return {name: number(value) for name, value in options.items()}


@cache
def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def trained(
    optimizer: fastopt.Optimizer, params: list[np.ndarray], steps: range, options: dict[str, Any] | None = None
) -> bytes:
    """The bits of parameters and states after steps, before each of which the groups are given options."""
    for k in steps:
        if options is not None:
            optimizer.param_groups[0].update(now(options, k))
        optimizer.step([noise(k, p.shape) - p for p in params])
    states = optimizer.state_dict()["state"].values()
    arrays = [*params, *(value for state in states for name, value in state.items() if name != "step")]
    return b"".join(array.tobytes() for array in arrays)


def start() -> list[np.ndarray]:
    return [np.linspace(-1, 1, 7), np.array(0.5)]


@pytest.mark.parametrize("cls", table.OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_number_of_an_optimizer_may_be_a_schedule(cls: type[fastopt.Optimizer]) -> None:
    variant = table.base(cls)
    for options in scheduled(variant):
        with table.named(table.Variant(cls, options)):
            params, others = start(), start()
            optimizer = cls(params, **options)
            other = cls(others, **now(options, 0))
            assert trained(optimizer, params, range(12)) == trained(other, others, range(12), options)


def resumed_trainings(saved: list[Any]) -> list[Any]:
    """What saved trainings end with."""
    found = []
    for name, options, params, state in saved:
        optimizer = getattr(fastopt, name)(params, **options)
        optimizer.load_state_dict(state)
        found.append(trained(optimizer, params, range(7, 12)))
    return found


def test_an_optimizer_resumes_in_a_new_process_by_its_step_count(tmp_path: Path) -> None:
    saved, whole = [], []
    for cls in table.OPTIMIZERS:
        options = scheduled(table.base(cls))[-1]
        params = start()
        optimizer = cls(params, **options)
        trained(optimizer, params, range(7))
        saved.append((cls.__name__, options, copy.deepcopy(params), optimizer.state_dict()))
        whole.append(trained(optimizer, params, range(7, 12)))
    assert in_a_new_process(resumed_trainings, saved, tmp_path) == whole


def a_run(schedule: Any) -> tuple[fastopt.Optimizer, list[np.ndarray]]:
    """An optimizer that a schedule leads: the momentum by schedules of that, else the learning rate."""
    params = start()
    if "momentum" in getattr(schedule, "name", ""):
        return fastopt.SGD(params, lr=0.01, momentum=schedule), params
    return fastopt.SGD(params, lr=schedule, momentum=0.5), params


def half_a_run(schedule: Any, optimizer: fastopt.Optimizer, params: list[np.ndarray], steps: range) -> bytes:
    """The bits of a run after steps; after every tenth a plateau is told a measure."""
    if not isinstance(schedule, ReduceLROnPlateau):
        return trained(optimizer, params, steps)
    for k in steps:
        bits = trained(optimizer, params, range(k, k + 1))
        if k % 10 == 9:
            schedule.step(LOSSES[k // 10])
    return bits


def resumed_halves(saved: list[Any]) -> list[Any]:
    """What saved runs end with, each with a schedule that is made anew."""
    found = []
    for code, state, of_plateau, kept in saved:
        schedule = eval(code, {**vars(DRAWN), **vars(schedules)})
        if of_plateau is not None:
            schedule.load_state_dict(of_plateau)
        optimizer, params = a_run(schedule)
        for param, value in zip(params, kept, strict=True):
            param[...] = value
        optimizer.load_state_dict(state)
        found.append(half_a_run(schedule, optimizer, params, range(500, 1000)))
    return found


def test_a_run_resumes_in_the_middle_of_every_schedule_in_a_new_process(tmp_path: Path) -> None:
    plateaus = [ReduceLROnPlateau(0.1, **options) for options in PLATEAUS if "min_lr" not in options]
    saved, whole = [], []
    for schedule in [*SAMPLES, *plateaus]:
        code = repr(schedule)
        optimizer, params = a_run(schedule)
        half_a_run(schedule, optimizer, params, range(500))
        of_plateau = schedule.state_dict() if isinstance(schedule, ReduceLROnPlateau) else None
        saved.append((code, optimizer.state_dict(), of_plateau, copy.deepcopy(params)))
        whole.append(half_a_run(schedule, optimizer, params, range(500, 1000)))
    assert in_a_new_process(resumed_halves, saved, tmp_path) == whole


def test_a_schedule_stays_when_a_state_is_loaded() -> None:
    beta, lr = linear(0.9, 10, 0.8), cosine(0.1, 10)
    optimizer = fastopt.Adam([np.ones(3)], lr=lr, betas=(beta, 0.9))
    saved = fastopt.Adam([np.ones(3)], lr=0.5, betas=(0.5, 0.6), eps=1e-3).state_dict()
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (lr, (beta, 0.6), 1e-3)


@every_sample
def test_every_number_is_a_float_and_finite_for_ever(schedule: Schedule) -> None:
    far = [] if schedule.name == "multiplicative" else [10**6, 2**31, 2**53 + 1, 2**63]
    for k in [*range(STEPS), *far]:
        number = schedule(k)
        assert type(number) is float
        assert 0 <= number <= 3.0


@every_sample
def test_a_call_is_short(schedule: Schedule) -> None:
    """Less than a microsecond, which is some 200 instructions of Python's; a time cannot be a test on a busy machine."""
    most = 0
    for k in (1, 2, 40, 1_000, 100_000):
        schedule(k)
        most = max(most, traced(lambda k=k: schedule(k)))
    assert 0 < most <= 200


# -- The page and the picture --

PAGE = (Path(__file__).parent.parent / "docs" / "schedules.md").read_text()


def test_the_page_has_every_signature() -> None:
    page = dict(re.findall(r"^\| `(\w+)\((.*)\)` \|", PAGE.partition("## From other libraries")[0], re.MULTILINE))
    assert page.keys() == {*schedules.__all__} - {"Schedule"}
    for name, arguments in page.items():
        function = eval(f"lambda {arguments}: 0")
        shown = [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
        signature = inspect.signature(getattr(schedules, name))
        assert shown == [(p.name, p.kind, p.default) for p in signature.parameters.values()], name


def test_the_page_names_every_schedule_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for name in torch.optim.lr_scheduler.__all__:
        assert name == "LRScheduler" or f"`{name}(" in PAGE


def test_every_argument_has_a_line_of_its_own() -> None:
    for name in {*schedules.__all__} - {"Schedule"}:
        maker = getattr(schedules, name)
        lines = [line.strip() for line in inspect.getdoc(maker).splitlines()]
        for argument in inspect.signature(maker).parameters:
            assert any(re.match(rf"([\w, ]+, )?{argument}[,:]", line) for line in lines), (name, argument)


@table.nightly
def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    DRAWN.main(["--output", str(tmp_path)])
    assert (tmp_path / "schedules.png").stat().st_size > 0


# -- Every argument counts --

CHANGES: dict[str, dict[str, tuple[str, Any]]] = {
    # for every argument: a call without the schedule's name, and another value for the argument
    "constant": {
        "value": ("0.1", 0.2),
        "factor": ("0.1, factor=0.5, steps=10", 0.6),
        "steps": ("0.1, factor=0.5, steps=10", 11),
    },
    "linear": {"value": ("0.1, 100", 0.2), "steps": ("0.1, 100", 101), "end": ("0.1, 100", 0.01)},
    "polynomial": {
        "value": ("0.1, 100", 0.2),
        "steps": ("0.1, 100", 101),
        "power": ("0.1, 100", 1.1),
        "end": ("0.1, 100", 0.01),
        "cycle": ("0.1, 100", True),
    },
    "cosine": {
        "value": ("0.1, 100", 0.2),
        "steps": ("0.1, 100", 101),
        "end": ("0.1, 100", 0.01),
        "power": ("0.1, 100", 2.0),
        "cycles": ("0.1, 100", 1.0),
    },
    "exponential": {
        "value": ("0.1, 0.9", 0.2),
        "gamma": ("0.1, 0.9", 0.8),
        "steps": ("0.1, 0.9", 2),
        "end": ("0.1, 0.9", 0.05),
    },
    "step": {
        "value": ("0.1, 30", 0.2),
        "step_size": ("0.1, 30", 31),
        "gamma": ("0.1, 30", 0.2),
        "end": ("0.1, 30", 0.001),
    },
    "multi_step": {
        "value": ("0.1, [30]", 0.2),
        "milestones": ("0.1, [30]", [30, 50]),
        "gamma": ("0.1, [30]", 0.2),
    },
    "inverse_sqrt": {"value": ("0.1", 0.2), "timescale": ("0.1", 100.0)},
    "inverse_time": {
        "value": ("0.1, 0.5", 0.2),
        "rate": ("0.1, 0.5", 0.6),
        "steps": ("0.1, 0.5", 10),
        "staircase": ("0.1, 0.5, 10", True),
    },
    "lambda_": {"value": ("0.1, math.tanh", 0.2), "function": ("0.1, math.tanh", math.atan)},
    "multiplicative": {"value": ("0.1, math.tanh", 0.2), "function": ("0.1, math.tanh", math.atan)},
    "cosine_annealing": {"value": ("0.1, 100", 0.2), "steps": ("0.1, 100", 101), "end": ("0.1, 100", 0.01)},
    "cosine_warm_restarts": {
        "value": ("0.1, 100", 0.2),
        "steps": ("0.1, 100", 100.5),
        "mult": ("0.1, 100", 2.0),
        "end": ("0.1, 100", 0.01),
        "gamma": ("0.1, 100", 0.5),
    },
    "one_cycle": {
        "peak": ("0.1, 100", 0.2),
        "steps": ("0.1, 100", 101),
        "pct_start": ("0.1, 100", 0.4),
        "anneal_strategy": ("0.1, 100", "linear"),
        "div_factor": ("0.1, 100", 10.0),
        "final_div_factor": ("0.1, 100", 10.0),
        "three_phase": ("0.1, 100", True),
    },
    "one_cycle_momentum": {
        "low": ("steps=100", 0.8),
        "high": ("steps=100", 0.9),
        "steps": ("steps=100", 101),
        "pct_start": ("steps=100", 0.4),
        "anneal_strategy": ("steps=100", "linear"),
        "three_phase": ("steps=100", True),
    },
    "cyclic": {
        "low": ("0.1, 0.2", 0.11),
        "high": ("0.1, 0.2", 0.3),
        "step_size_up": ("0.1, 0.2", 100),
        "step_size_down": ("0.1, 0.2, 100", 50),
        "mode": ("0.1, 0.2, 100", "triangular2"),
        "gamma": ("0.1, 0.2, 100, mode='exp_range'", 0.99),
    },
    "cyclic_momentum": {
        "low": ("", 0.7),
        "high": ("", 0.95),
        "step_size_up": ("", 100),
        "step_size_down": ("step_size_up=100", 50),
        "mode": ("step_size_up=100", "triangular2"),
        "gamma": ("step_size_up=100, mode='exp_range'", 0.99),
    },
    "warmup_stable_decay": {
        "value": ("0.1, 1000, 100, 200", 0.2),
        "steps": ("0.1, 900, 100, 200", 901),
        "warmup_steps": ("0.1, 900, 100, 200", 101),
        "decay_steps": ("0.1, 900, 100, 200", 201),
        "start": ("0.1, 900, 100, 200", 0.01),
        "end": ("0.1, 900, 100, 200", 0.01),
        "warmup_type": ("0.1, 900, 100, 200", "cosine"),
        "decay_type": ("0.1, 900, 100, 200", "1-sqrt"),
    },
    "warmup": {
        "schedule": ("0.1, 100", cosine(0.1, 500)),
        "steps": ("0.1, 100", 101),
        "start": ("0.1, 100", 0.01),
        "warmup_type": ("0.1, 100", "1-sqrt"),
    },
    "sequential": {
        "schedules": ("[0.1, 0.2], [100]", [0.1, 0.3]),
        "milestones": ("[0.1, 0.2], [100]", [101]),
    },
    "chained": {"schedules": ("[0.1, 0.2]", [0.1, 0.3])},
}


def test_every_argument_is_changed() -> None:
    assert {name: [*inspect.signature(maker).parameters] for name, maker in MAKERS.items()} == {
        name: [*changes] for name, changes in CHANGES.items()
    }


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name in CHANGES for argument in CHANGES[name]]
)
def test_every_argument_changes_the_numbers(name: str, argument: str) -> None:
    call, other = CHANGES[name][argument]
    before = made(f"{name}({call})")
    assert before.arguments[argument] != other
    after = MAKERS[name](**{**before.arguments, argument: other})
    assert numbers(after) != numbers(before)


# -- What is refused, and that what the message says helps --

REFUSED = [
    # the call, the error and its message, a call that does what the message says
    ("cosine()", TypeError, "cosine: missing a required argument: 'value'; its arguments are value, steps, end", "cosine(0.1, 9)"),
    ("cosine(0.1, 9, stop=1)", TypeError, "got an unexpected keyword argument 'stop'; its arguments are", "cosine(0.1, 9, end=0.01)"),
    ("cosine('0.1', 9)", TypeError, "cosine: value: expected a number, got '0.1' (str)", "cosine(0.1, 9)"),
    ("cosine(True, 9)", TypeError, "cosine: value: expected a number, got True (bool)", "cosine(1.0, 9)"),
    ("cosine(np.bool_(True), 9)", TypeError, "value: expected a number", "cosine(1.0, 9)"),
    ("cosine(1j, 9)", TypeError, "value: expected a number, got 1j (complex)", "cosine(1.0, 9)"),
    ("cosine(np.ones(1), 9)", TypeError, "value: expected a number, got array([1.]) (ndarray)", "cosine(np.ones(1)[0], 9)"),
    ("cosine(None, 9)", TypeError, "value: expected a number, got None (NoneType)", "cosine(0.1, 9)"),
    ("cosine(-0.1, 9)", ValueError, "cosine: value: -0.1 is out of range; it must be finite and not negative", "cosine(0.0, 9)"),
    ("cosine(math.nan, 9)", ValueError, "value: nan is out of range; it must be finite and not negative", "cosine(0.1, 9)"),
    ("cosine(math.inf, 9)", ValueError, "value: inf is out of range; it must be finite", "cosine(0.1, 9)"),
    ("cosine(10**400, 9)", ValueError, "value: inf is out of range; it must be finite", "cosine(1e300, 9)"),
    ("cosine(0.1, -9)", ValueError, "cosine: steps: -9 is out of range; it must be at least 1", "cosine(0.1, 1)"),
    ("cosine(0.1, 0)", ValueError, "steps: 0 is out of range; it must be at least 1", "cosine(0.1, 1)"),
    ("cosine(0.1, 1e4)", TypeError, "steps: expected a whole number, got 10000.0 (float); pass 10000", "cosine(0.1, 10000)"),
    ("cosine(0.1, 1.5)", TypeError, "steps: expected a whole number, got 1.5 (float)", "cosine(0.1, 2)"),
    ("cosine(0.1, True)", TypeError, "steps: expected a whole number, got True (bool)", "cosine(0.1, 1)"),
    ("cosine(0.1, '9')", TypeError, "steps: expected a whole number, got '9' (str)", "cosine(0.1, 9)"),
    ("cosine(0.1, 9, -1.0)", ValueError, "end: -1.0 is out of range; it must be finite and not negative", "cosine(0.1, 9, 0.0)"),
    ("cosine(0.1, 9, power=0)", ValueError, "power: 0.0 is out of range; it must be finite and above 0", "cosine(0.1, 9, power=0.1)"),
    ("cosine(0.1, 9, cycles=0)", ValueError, "cycles: 0.0 is out of range; it must be finite and above 0", "cosine(0.1, 9, cycles=0.1)"),
    ("constant(0.1, 0.5)", ValueError, "constant: steps: missing; pass factor and steps together, or neither", "constant(0.1, 0.5, 9)"),
    ("constant(0.1, steps=9)", ValueError, "constant: factor: missing; pass factor and steps together, or neither", "constant(0.1)"),
    ("constant(0.1, -0.5, 9)", ValueError, "factor: -0.5 is out of range; it must be finite and not negative", "constant(0.1, 0.0, 9)"),
    ("polynomial(0.1, 9, cycle=1)", TypeError, "cycle: expected True or False, got 1 (int)", "polynomial(0.1, 9, cycle=True)"),
    ("polynomial(0.1, 9, cycle='no')", TypeError, "cycle: expected True or False, got 'no'", "polynomial(0.1, 9, cycle=np.bool_(0))"),
    ("exponential(0.1, -0.9)", ValueError, "gamma: -0.9 is out of range; it must be finite and not negative", "exponential(0.1, 0.0)"),
    ("exponential(0.1, 0.9, end=0.2)", ValueError, "exponential: end: 0.2 is above value, 0.1, which falls; pass a lower end", "exponential(0.1, 0.9, end=0.01)"),
    ("exponential(0.1, 0.9, end=0.2)", ValueError, "or gamma above 1", "exponential(0.1, 1.1, end=0.2)"),
    ("exponential(0.1, 1.1, end=0.05)", ValueError, "end: 0.05 is below value, 0.1, which does not fall; pass gamma below 1", "exponential(0.1, 0.9, end=0.05)"),
    ("exponential(0.1, 1.1, end=0.05)", ValueError, "or a higher end", "exponential(0.1, 1.1, end=0.2)"),
    ("multi_step(0.1, [])", ValueError, "multi_step: milestones: there are none; pass at least one step, or use constant", "multi_step(0.1, [9])"),
    ("multi_step(0.1, 30)", TypeError, "milestones: expected a list of steps, got 30 (int)", "multi_step(0.1, [30])"),
    ("multi_step(0.1, '30')", TypeError, "milestones: expected a list of steps, got '30' (str)", "multi_step(0.1, [30])"),
    ("multi_step(0.1, [30, 20])", ValueError, "milestones[1]: 20 comes after 30; sort them", "multi_step(0.1, [20, 30])"),
    ("multi_step(0.1, [0, 20])", ValueError, "milestones[0]: 0 is out of range; it must be at least 1", "multi_step(0.1, [1, 20])"),
    ("multi_step(0.1, [20, 30.0])", TypeError, "milestones[1]: expected a whole number, got 30.0 (float); pass 30", "multi_step(0.1, [20, 30])"),
    ("inverse_sqrt(0.1, 0)", ValueError, "timescale: 0.0 is out of range; it must be finite and above 0", "inverse_sqrt(0.1, 1)"),
    ("lambda_(0.1, 0.5)", TypeError, "lambda_: function: expected a function of the step, got 0.5 (float)", "lambda_(0.1, lambda k: 0.5)"),
    ("multiplicative(0.1, 0.5)", TypeError, "function: expected a function of the step, got 0.5", "multiplicative(0.1, lambda k: 0.5)"),
    ("cosine_warm_restarts(0.1, 0.5)", ValueError, "steps: 0.5 is out of range; it must be finite and at least 1", "cosine_warm_restarts(0.1, 1)"),
    ("cosine_warm_restarts(0.1, 9, 0.5)", ValueError, "mult: 0.5 is out of range; it must be finite and at least 1", "cosine_warm_restarts(0.1, 9, 1)"),
    ("one_cycle(0.1, 9, 1.5)", ValueError, "pct_start: 1.5 is out of range; it must be at most 1 and not negative", "one_cycle(0.1, 9, 1)"),
    ("one_cycle(0.1, 9, 0.6, three_phase=True)", ValueError, "pct_start: 0.6 leaves no third phase; with three_phase it is at most 0.5", "one_cycle(0.1, 9, 0.5, three_phase=True)"),
    ("one_cycle(0.1, 9, anneal_strategy='cosine')", ValueError, "anneal_strategy: 'cosine' is not known; use 'cos' or 'linear'", "one_cycle(0.1, 9, anneal_strategy='cos')"),
    ("one_cycle(0.1, 9, anneal_strategy=1)", TypeError, "anneal_strategy: expected 'cos' or 'linear', got 1 (int)", "one_cycle(0.1, 9, anneal_strategy='linear')"),
    ("one_cycle(0.1, 9, div_factor=0)", ValueError, "div_factor: 0.0 is out of range; it must be finite and above 0", "one_cycle(0.1, 9, div_factor=1)"),
    ("one_cycle_momentum(0.95, 0.85, steps=9)", ValueError, "low: 0.95 is above high, 0.85; swap them", "one_cycle_momentum(0.85, 0.95, steps=9)"),
    ("one_cycle_momentum()", TypeError, "missing a required argument: 'steps'", "one_cycle_momentum(steps=9)"),
    ("cyclic(0.2, 0.1)", ValueError, "cyclic: low: 0.2 is above high, 0.1; swap them", "cyclic(0.1, 0.2)"),
    ("cyclic(0.1, 0.2, mode='zigzag')", ValueError, "mode: 'zigzag' is not known; use 'triangular' or 'triangular2' or 'exp_range'", "cyclic(0.1, 0.2, mode='triangular2')"),
    ("cyclic(0.1, 0.2, gamma=0.9)", ValueError, "gamma: has no effect with mode='triangular'; leave it out", "cyclic(0.1, 0.2)"),
    ("cyclic(0.1, 0.2, gamma=0.9)", ValueError, 'or pass mode="exp_range"', "cyclic(0.1, 0.2, mode='exp_range', gamma=0.9)"),
    ("cyclic_momentum(0.9, 0.8)", ValueError, "cyclic_momentum: low: 0.9 is above high, 0.8; swap them", "cyclic_momentum(0.8, 0.9)"),
    ("warmup(cosine(0.1, 10), 100)", ValueError, "warmup: steps: a warm-up of 100 steps is longer than the 10 steps of the cosine behind it; pass fewer", "warmup(cosine(0.1, 10), 10)"),
    ("warmup(cosine(0.1, 10), 100)", ValueError, "if that is meant, sequential([linear(0.0, 100, end=0.1), cosine(0.1, 10)], [100])", "sequential([linear(0.0, 100, end=0.1), cosine(0.1, 10)], [100])"),
    ("warmup('cosine', 10)", TypeError, "schedule: expected a schedule, a function of the step or a number, got 'cosine' (str)", "warmup(cosine(0.1, 100), 10)"),
    ("warmup(-0.1, 10)", ValueError, "schedule: -0.1 is out of range; it must be finite and not negative", "warmup(0.1, 10)"),
    ("warmup(0.1, 0)", ValueError, "steps: 0 is out of range; it must be at least 1", "warmup(0.1, 1)"),
    ("warmup(0.1, 10, warmup_type='cos')", ValueError, "warmup_type: 'cos' is not known; use 'linear' or 'cosine' or '1-sqrt'", "warmup(0.1, 10, warmup_type='cosine')"),
    ("warmup_stable_decay(0.1, 100, 80, 30)", ValueError, "warmup_steps: 80 steps of warm-up and 30 of decay are longer than the run of 100 steps; together they must be at most steps", "warmup_stable_decay(0.1, 100, 70, 30)"),
    ("warmup_stable_decay(0.1, 100, -1, 30)", ValueError, "warmup_steps: -1 is out of range; it must be at least 0", "warmup_stable_decay(0.1, 100, 0, 30)"),
    ("sequential([0.1, 0.2], [])", ValueError, "milestones: 2 schedules need 1 of them, got 0; pass the first step of every schedule but the first", "sequential([0.1, 0.2], [10])"),
    ("sequential([], [])", ValueError, "sequential: schedules: there are none; pass at least one schedule", "sequential([0.1], [])"),
    ("sequential(0.1, [])", TypeError, "schedules: expected a list of schedules, got 0.1 (float)", "sequential([0.1], [])"),
    ("sequential([0.1, 'x'], [9])", TypeError, "schedules[1]: expected a schedule, a function of the step or a number, got 'x'", "sequential([0.1, 0.2], [9])"),
    ("sequential([0.1, 0.2, 0.3], [9, 9])", ValueError, "milestones[1]: 9 is there twice; leave one of the two schedules out", "sequential([0.1, 0.3], [9])"),
    ("chained([])", ValueError, "chained: schedules: there are none; pass at least one schedule", "chained([0.1])"),
    ("cosine(0.1, 9)(-1)", ValueError, "step: -1 is out of range; it must be at least 0", "cosine(0.1, 9)(0)"),
    ("cosine(0.1, 9)(3.0)", TypeError, "step: expected a whole number, got 3.0 (float); pass 3", "cosine(0.1, 9)(3)"),
    ("cosine(0.1, 9)(None)", TypeError, "step: expected a whole number, got None", "cosine(0.1, 9)(0)"),
    ("ReduceLROnPlateau('Adam')", TypeError, "optimizer: expected an optimizer of fastopt or a number, got 'Adam' (str)", "ReduceLROnPlateau(0.1)"),
    ("ReduceLROnPlateau(-0.1)", ValueError, "optimizer: -0.1 is out of range; it must be finite and not negative", "ReduceLROnPlateau(0.1)"),
    ("ReduceLROnPlateau(0.1, 'least')", ValueError, "mode: 'least' is not known; use 'min' or 'max'", "ReduceLROnPlateau(0.1, 'min')"),
    ("ReduceLROnPlateau(0.1, factor=1.0)", ValueError, "factor: 1.0 is out of range; it must be below 1 and not negative", "ReduceLROnPlateau(0.1, factor=0.99)"),
    ("ReduceLROnPlateau(0.1, patience=-1)", ValueError, "patience: -1 is out of range; it must be at least 0", "ReduceLROnPlateau(0.1, patience=0)"),
    ("ReduceLROnPlateau(0.1, threshold=-1)", ValueError, "threshold: -1.0 is out of range; it must be finite and not negative", "ReduceLROnPlateau(0.1, threshold=0)"),
    ("ReduceLROnPlateau(0.1, threshold_mode='relative')", ValueError, "threshold_mode: 'relative' is not known; use 'rel' or 'abs'", "ReduceLROnPlateau(0.1, threshold_mode='rel')"),
    ("ReduceLROnPlateau(0.1, min_lr=[0.1, 0.2])", ValueError, "min_lr: 2 numbers for 1 parameter groups; pass one for each, or one", "ReduceLROnPlateau(0.1, min_lr=[0.1])"),
    ("ReduceLROnPlateau(0.1, min_lr=[-0.1])", ValueError, "min_lr[0]: -0.1 is out of range", "ReduceLROnPlateau(0.1, min_lr=0.1)"),
    ("ReduceLROnPlateau(0.1).step('low')", TypeError, "metrics: expected a number, got 'low' (str)", "ReduceLROnPlateau(0.1).step(0.5)"),
    ("ReduceLROnPlateau(0.1).load_state_dict([])", TypeError, "state_dict: expected a dict, got [] (list)", "ReduceLROnPlateau(0.1).load_state_dict(ReduceLROnPlateau(0.1).state_dict())"),
    ("ReduceLROnPlateau(0.1).load_state_dict({})", ValueError, "state_dict: mode, factor, patience, threshold, threshold_mode, cooldown, eps, best, num_bad_epochs, cooldown_counter, last_epoch, min_lrs, _last_lr missing; pass what state_dict() of a ReduceLROnPlateau returned", "ReduceLROnPlateau(0.1).load_state_dict(ReduceLROnPlateau(0.1).state_dict())"),
    ("ReduceLROnPlateau(fastopt.SGD([np.ones(1)], lr=cosine(0.1, 9)))", TypeError, "optimizer: the lr of group 0 is a function of the step; make a ReduceLROnPlateau of 1.0 and give the group lr=chained([schedule, plateau])", "fastopt.SGD([np.ones(1)], lr=chained([cosine(0.1, 9), ReduceLROnPlateau(1.0)]))"),
    ("ReduceLROnPlateau(fastopt.SGD([np.ones(1)]))(0)", TypeError, "this ReduceLROnPlateau edits its optimizer's groups and has no number of its own; make one of a number to use it as a schedule", "ReduceLROnPlateau(0.1)(0)"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "message", "right"), REFUSED)
def test_what_is_wrong_is_refused_and_the_message_helps(
    wrong: str, error: type[Exception], message: str, right: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        made(wrong)
    made(right)


# -- Properties --

EXAMPLES = int(os.environ.get("FASTOPT_FUZZ", "0")) // 100
"""As for test_fuzz.py; without it they are few and always the same."""
some_examples = settings(deadline=None, max_examples=EXAMPLES or 20, derandomize=not EXAMPLES)

positive = st.floats(1e-6, 1e3)
some_steps = st.integers(1, 2000)
ks = st.integers(0, 5000)


def close(a: float, b: float, scale: float) -> bool:
    return abs(a - b) <= 1e-9 * scale


@given(positive, positive, some_steps, st.floats(0.3, 5), st.floats(0.1, 4), ks)
@some_examples
def test_a_way_stays_between_its_ends(
    value: float, end: float, steps: int, power: float, cycles: float, k: int
) -> None:
    for schedule in (
        linear(value, steps, end),
        polynomial(value, steps, power, end),
        polynomial(value, steps, power, end, cycle=True),
        cosine(value, steps, end, power, cycles),
        cosine_annealing(value, steps, end),
        cosine_warm_restarts(value, steps, 1 + cycles, end),
        cosine_warm_restarts(value, steps, 1.0, end),
    ):
        low, high = sorted((value, end))
        assert low - 1e-12 * high <= schedule(k) <= high * (1 + 1e-12), schedule
        assert close(schedule(0), value, high), schedule


@given(positive, positive, some_steps, st.floats(0.3, 5), ks)
@some_examples
def test_a_way_that_is_over_stays_where_it_ended(
    value: float, end: float, steps: int, power: float, k: int
) -> None:
    for schedule in (
        linear(value, steps, end),
        polynomial(value, steps, power, end),
        cosine(value, steps, end, power),
    ):
        assert schedule(steps) == schedule(steps + k) == end, schedule
        # it arrives there without a jump
        slope = abs(value - end) * max(2 * power, 2) * (1 / steps) ** min(power, 1)
        assert abs(schedule(steps - 1) - end) <= slope * 1.001, schedule


@given(positive, st.integers(3, 2000), st.floats(0, 0.5), st.floats(1, 100), st.floats(1, 1e4), st.booleans(), ks)
@some_examples
def test_one_cycle_stays_between_its_ends_and_does_not_jump(
    peak: float, steps: int, pct: float, div: float, final: float, three: bool, k: int
) -> None:
    for strategy in ("cos", "linear"):
        schedule = one_cycle(peak, steps, pct, strategy, div, final, three)
        assert peak / div / final * (1 - 1e-9) <= schedule(k) <= peak * (1 + 1e-9)
        assert close(schedule(steps - 1), peak / div / final, peak)
        assert schedule(steps - 1) == pytest.approx(schedule(steps + k), rel=1e-9)
        momentum = one_cycle_momentum(
            0.8, 0.9, steps=steps, pct_start=pct, anneal_strategy=strategy, three_phase=three
        )
        assert 0.8 - 1e-12 <= momentum(k) <= 0.9 + 1e-12
        if pct * steps >= 20:
            # the steepest part of a cosine's way: pi / 2 over its length
            width = min(pct * steps - 1, steps - 1 - (pct * steps - 1) * (2 if three else 1))
            jump = abs(schedule(k + 1) - schedule(k))
            assert jump <= peak * math.pi / 2 / max(width, 1) * 1.001


@given(positive, positive, st.integers(1, 500), st.integers(1, 500), ks)
@some_examples
def test_cycles_stay_between_their_ends_and_do_not_jump(a: float, b: float, up: int, down: int, k: int) -> None:
    low, high = sorted((a, b))
    for mode, gamma in (("triangular", 1.0), ("triangular2", 1.0), ("exp_range", 0.999)):
        schedule, momentum = (
            cyclic(low, high, up, down, mode, gamma),
            cyclic_momentum(low, high, up, down, mode, gamma),
        )
        slack = 1e-12 * high
        assert low - slack <= schedule(k) <= high + slack
        assert close(schedule(k) + momentum(k), low + high, high)
        assert abs(schedule(k + 1) - schedule(k)) <= (high - low) * (1 / min(up, down) + 0.001) + slack
        assert close(schedule(k - k % (up + down)), low, high)


@given(positive, some_steps, st.floats(0, 1), st.sampled_from(["linear", "cosine", "1-sqrt"]), ks)
@some_examples
def test_a_warmup_joins_without_a_jump(value: float, steps: int, part: float, shape: Any, k: int) -> None:
    run = inverse_sqrt(value, 100)
    schedule = warmup(run, steps, value * part, shape)
    assert close(schedule(0), value * part, value)
    assert schedule(steps + k) == run(k)
    assert value * part * (1 - 1e-9) <= schedule(min(k, steps)) <= value * (1 + 1e-9)
    left = 1 / steps if shape == "linear" else 2.5 / steps if shape == "cosine" else math.sqrt(1 / steps)
    assert abs(schedule(steps - 1) - value) <= value * left * 1.001


@given(
    positive,
    st.integers(0, 300),
    st.integers(1, 300),
    st.integers(0, 300),
    st.sampled_from(["linear", "cosine", "1-sqrt"]),
)
@some_examples
def test_warmup_stable_decay_has_its_three_parts(value: float, up: int, level: int, down: int, shape: Any) -> None:
    steps = up + level + down
    schedule = warmup_stable_decay(value, steps, up, down, value / 9, value / 7, shape, shape)
    if up:
        assert close(schedule(0), value / 9, value)
    assert {schedule(k) for k in range(up, up + level)} == {value}
    assert close(schedule(steps), value / 7, value)
    assert schedule(steps) == schedule(steps + 10**9)
    ways = [schedule(k) for k in range(up)], [schedule(k) for k in range(steps - down, steps)]
    assert ways[0] == sorted(ways[0])
    assert ways[1] == sorted(ways[1], reverse=True)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.integers(0, 2000))
@some_examples
def test_sequential_is_each_schedule_from_its_own_beginning(lengths: list[int], k: int) -> None:
    milestones = list(itertools.accumulate(lengths))
    parts = [exponential(0.1 * (i + 1), 0.99) for i in range(len(lengths) + 1)]
    part, begin = max(
        ((part, begin) for part, begin in zip(parts, [0, *milestones], strict=True) if begin <= k),
        key=lambda x: x[1],
    )
    assert sequential(parts, milestones)(k) == part(k - begin)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
@some_examples
def test_a_product_does_not_depend_on_the_order_of_the_calls(order: list[int]) -> None:
    def factor(k: int) -> float:
        return 1 + math.sin(k) / 10

    calls = multiplicative(0.1, factor)
    product, whole = 0.1, []
    for k in range(1001):
        product = product * factor(k) if k else product
        whole.append(product)
    assert [calls(k) for k in order] == [whole[k] for k in order]


def test_a_product_calls_its_function_once_a_step() -> None:
    called: list[int] = []
    schedule = multiplicative(0.1, lambda k: called.append(k) or 0.99)  # type: ignore[func-returns-value]
    numbers(schedule)
    assert called == [*range(1, STEPS)]


@table.cases(
    "mult, steps",
    itertools.product([1.001, 1.1, 1.5, 2.0, 3.0, 10.0, 1e200], [1.0, 1.5, 10.0, 33.3]),
    [(1.001, 10.0), (1.1, 33.3), (1.5, 1.0), (2.0, 1.5), (1e200, 10.0)],
)
def test_restarts_come_after_the_right_lengths(mult: float, steps: float) -> None:
    schedule = cosine_warm_restarts(1.0, steps, mult)
    begin, length = 0.0, steps
    for k in range(3000):
        while k >= begin + length:
            begin, length = begin + length, length * mult
        expected = (1 + math.cos(math.pi * (k - begin) / length)) / 2
        if min(k - begin, begin + length - k) > 1e-6:  # rounding decides at the very restart
            assert schedule(k) == pytest.approx(expected, abs=1e-5), k


# -- Plateaus --

LOSSES = [*np.random.default_rng(0).normal(1 / np.linspace(1, 5, 200), 0.05), *[math.nan] * 30, *[0.1] * 50]

PLATEAUS = [
    {},
    {"patience": 3, "factor": 0.5, "threshold": 0.05},
    {"patience": 0, "cooldown": 4, "min_lr": 1e-3},
    {"patience": 2, "mode": "max", "threshold": 0.01, "threshold_mode": "abs", "factor": 0.9},
    {"patience": 5, "threshold": 0.02, "threshold_mode": "abs", "cooldown": 2, "eps": 1e-3, "factor": 0.3},
    {"patience": 1, "mode": "max", "factor": 0.0, "min_lr": [0.01, 0.02]},
]


class Groups:
    """All that a plateau needs of an optimizer."""

    def __init__(self, *lrs: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": lr} for lr in lrs]

    @property
    def lrs(self) -> list[float]:
        return [float(group["lr"]) for group in self.param_groups]


@pytest.mark.parametrize("options", PLATEAUS, ids=repr)
def test_a_plateau_is_that_of_torch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.1}, {"params": [torch.zeros(1)], "lr": 1.0}])
    ours = Groups(0.1, 1.0)
    plateaus = (torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options), ReduceLROnPlateau(ours, **options))
    for loss in LOSSES:
        for plateau in plateaus:
            plateau.step(loss)
        assert ours.lrs == [group["lr"] for group in theirs.param_groups]
        for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
            assert getattr(plateaus[1], name) == getattr(plateaus[0], name)
    assert ours.lrs != [0.1, 1.0]


@pytest.mark.parametrize("options", PLATEAUS, ids=repr)
def test_a_plateau_goes_on_from_a_state_of_torch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.1}, {"params": [torch.zeros(1)], "lr": 1.0}])
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    for loss in LOSSES[:77]:
        plateau.step(loss)
    ours = Groups(*(group["lr"] for group in theirs.param_groups))
    resumed = ReduceLROnPlateau(ours)
    resumed.load_state_dict(plateau.state_dict())
    back = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs)
    back.load_state_dict(resumed.state_dict())
    for loss in LOSSES[77:]:
        back.step(loss)
        resumed.step(loss)
        assert ours.lrs == [group["lr"] for group in theirs.param_groups]


@pytest.mark.parametrize("options", PLATEAUS[:-1], ids=repr)
def test_a_plateau_of_a_number_is_the_same(options: dict[str, Any]) -> None:
    alone, groups = ReduceLROnPlateau(0.1, **options), Groups(0.1)
    edits = ReduceLROnPlateau(groups, **options)
    for k, loss in enumerate(LOSSES):
        alone.step(loss)
        edits.step(loss)
        assert groups.lrs == [alone(k)]
        if k == 100:
            state = json.loads(json.dumps(alone.state_dict()))
            alone = ReduceLROnPlateau(7.0)
            alone.load_state_dict(state)
            alone = pickle.loads(pickle.dumps(alone))


@pytest.mark.parametrize(
    ("option", "other"),
    [
        ("mode", "max"),
        ("factor", 0.5),
        ("patience", 3),
        ("threshold", 0.2),
        ("threshold_mode", "abs"),
        ("cooldown", 3),
        ("min_lr", 0.05),
        ("eps", 0.5),
    ],
)
def test_every_setting_of_a_plateau_changes_the_numbers(option: str, other: Any) -> None:
    def run(change: bool, assign: bool = False) -> list[float]:
        plateau = ReduceLROnPlateau(
            0.1, **({"patience": 1, "threshold": 0.1} | ({option: other} if change and not assign else {}))
        )
        if assign:
            setattr(plateau, option, other)
            if option == "mode":
                plateau.best = -math.inf
        found = []
        for k, loss in enumerate(LOSSES):
            plateau.step(loss)
            found.append(plateau(k))
        return found

    assert run(True) != run(False)
    assert run(True, assign=True) == run(True)


def test_a_plateau_edits_an_optimizer_and_leads_one() -> None:
    params = [np.ones(3), np.ones(3)]
    opt = fastopt.SGD([{"params": params[:1]}, {"params": params[1:], "lr": 1.0}], lr=0.1)
    plateau = ReduceLROnPlateau(opt, patience=0)
    for _ in range(2):
        opt.step([np.zeros(3)] * 2)
        plateau.step(1.0)
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([0.01, 0.1])

    plateau = ReduceLROnPlateau(0.1, patience=0)
    param = np.ones(1)
    opt = fastopt.SGD([param], lr=plateau)
    for expected in (0.9, 0.8, 0.79):
        opt.step([np.ones(1)])
        assert param == pytest.approx(expected)
        plateau.step(1.0)


def test_a_plateau_times_a_schedule() -> None:
    plateau = ReduceLROnPlateau(1.0, patience=0, factor=0.5)
    rate = chained([linear(0.1, 10), plateau])
    plateau.step(1.0)
    assert rate(5) == pytest.approx(0.05)
    plateau.step(1.0)
    assert rate(5) == pytest.approx(0.025)


def test_a_plateau_prints_its_settings() -> None:
    assert repr(ReduceLROnPlateau(0.1, patience=3)) == (
        "ReduceLROnPlateau(0.1, mode='min', factor=0.1, patience=3, threshold=0.0001, threshold_mode='rel', "
        "cooldown=0, eps=1e-08, min_lr=0.0)"
    )
    assert repr(ReduceLROnPlateau(Groups(0.1))).startswith("ReduceLROnPlateau(<Groups>, mode='min'")


def test_a_group_that_was_added_needs_a_min_lr() -> None:
    groups = Groups(0.1)
    plateau = ReduceLROnPlateau(groups, min_lr=[0.01], patience=0)
    groups.param_groups.append({"lr": 0.1})
    message = "min_lr: 1 numbers for 2 parameter groups; a group was added: assign plateau.min_lr anew"
    with pytest.raises(ValueError, match=message):
        plateau.step(1.0)
    assert plateau.last_epoch == 0
    plateau.min_lr = [0.01, 0.05]
    for _ in range(3):
        plateau.step(1.0)
    assert groups.lrs == pytest.approx([0.01, 0.05])


def test_a_state_for_another_number_of_groups_is_refused_and_changes_nothing() -> None:
    state = ReduceLROnPlateau(Groups(0.1, 0.2), patience=3).state_dict()
    plateau = ReduceLROnPlateau(0.1, patience=5)
    before = plateau.state_dict()
    message = (
        "it has 2 learning rates and this plateau one number; load it into one that was made of the optimizer"
    )
    with pytest.raises(ValueError, match=message):
        plateau.load_state_dict(state)
    with pytest.raises(ValueError, match=re.escape("state_dict['patience']: -1 is out of range")):
        plateau.load_state_dict({**before, "patience": -1})
    assert plateau.state_dict() == before
    ReduceLROnPlateau(Groups(0.1, 0.2)).load_state_dict(state)


def test_an_assignment_to_a_plateau_is_checked() -> None:
    plateau = ReduceLROnPlateau(0.1)
    with pytest.raises(ValueError, match=r"factor: 2\.0 is out of range"):
        plateau.factor = 2.0
    with pytest.raises(AttributeError):
        plateau.patients = 3  # type: ignore[attr-defined]
    plateau.factor = 0.5
    assert plateau.factor == 0.5


def test_functions_with_state_of_their_own_take_part() -> None:
    """A partial function, an object with __call__: any function of the step."""
    rate = warmup(partial(math.ldexp, 1.0), 10)
    assert rate(10) == 1.0
    assert rate(12) == 4.0
    assert repr(rate).startswith("warmup(functools.partial(")
