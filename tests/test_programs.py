"""Programs of random calls: they leave the same bits with the NumPy twins and with kernels of changing instruction sets.

test_fuzz.py writes programs whose calls may be wrong in any way; here nearly all are right, and calls are of every kind.

``FASTOPT_FUZZ=50000 pytest tests/test_programs.py`` runs 50 programs of each optimizer.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array

import fastopt

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHAPES: list[tuple[int, ...]] = [(5,), (4, 6), (3, 2, 2), (70,), (5000,), (300, 300)]
MATRICES: list[tuple[int, ...]] = [(5, 4), (4, 6), (30, 3)]
SEEDS = max(2, int(os.environ.get("FASTOPT_FUZZ", "0")) // 1000)
REFUSALS = TypeError, ValueError, RuntimeError


class Program:
    """Parameters by name, an optimizer, what follows it, and what the calls have returned."""

    def __init__(self, cls: table.Class, seed: int, folder: Path) -> None:
        self.choose = random.Random(seed)
        self.file = folder / "checkpoint.npz"
        self.dtype = self.choose.choice([np.dtype(np.float32), np.dtype(np.float64), BFLOAT16])
        shapes = SHAPES if cls in table.OPTIMIZERS else MATRICES
        self.params = {f"p{i}": self.drawn(shape) for i, shape in enumerate(shapes)}
        variants = [v for v in table.VARIANTS if v.cls is cls and self.dtype.name in v.dtypes] or [table.base(cls)]
        variant = self.choose.choice(variants)
        self.has_own = seed % 2 == 0  # else the optimizer is handed the parameters at each step
        self.optimizer: Any = variant.make(dict(self.params)) if self.has_own else cls(**variant.options)
        self.averages: list[Any] = []
        self.mirror: dict[str, Array] = {}
        self.saved: Any = None
        self.returned: list[Any] = []

    def drawn(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        size = self.choose.choice([1.0, 1.0, 1e-3, 30.0])
        rng = np.random.default_rng(self.choose.randrange(1 << 30))
        return (rng.standard_normal(shape) * size).astype(dtype or self.dtype)

    def gradients(self, names: list[str] | None = None) -> dict[str, Any]:
        return {name: self.gradient(self.params[name].shape) for name in names or self.params}

    def gradient(self, shape: tuple[int, ...]) -> Any:
        """One of every layout and storage, or none."""
        kind = self.choose.choice(["plain"] * 6 + ["none", "other order", "gaps", "16 bits", "64 bits"])
        grad = self.drawn(shape)
        if kind == "none":
            return None
        if kind == "other order":
            return np.asfortranarray(grad)
        if kind == "gaps":
            return np.stack([grad, grad], axis=-1)[..., 0]
        if kind == "64 bits" and self.dtype == np.float32:
            return grad.astype(np.float64)
        if kind == "16 bits" and self.dtype == np.float32:
            return grad.astype(self.choose.choice([np.float16, BFLOAT16]))
        return grad

    def options(self) -> dict[str, Any]:
        """Arguments of a step."""
        choices: dict[str, list[Any]] = {
            "grad_scale": [0.5, 2.0],
            "max_value": [0.5, 0.01],
            "max_norm_each": [1.0, 0.1],
            "max_norm": [1.0, 0.1, 100.0],
            "norm_type": [math.inf],
            "skip_nonfinite": [True],
            "zero_grads": [True],
        }
        return {name: self.choose.choice(some) for name, some in choices.items() if self.choose.random() < 0.3}

    def step(self, grads: dict[str, Any], **options: Any) -> Any:
        if self.has_own:
            return self.optimizer.step(grads, **options)
        return self.optimizer.update(self.params, grads, **options)

    def handed_over(self, names: Iterable[str] | None = None) -> list[dict[str, Array]]:
        """What a method that needs the parameters is given, if the optimizer does not have them; names: None: all."""
        return [] if self.has_own else [{name: self.params[name] for name in names or self.params}]

    def matrix(self) -> str:
        return self.choose.choice([name for name, p in self.params.items() if p.ndim >= 2])

    def bits(self) -> list[Any]:
        """Everything that the program can see."""
        states = self.optimizer.state_dict()["state"]
        return [
            *[p.tobytes() for p in self.params.values()],
            *[(i, n, np.asarray(x).tobytes()) for i, entry in states.items() for n, x in entry.items()],
            *[(name, a.tobytes()) for average in self.averages for name, a in dict(average.arrays).items()],
            *[half.tobytes() for half in self.mirror.values()],
            repr(self.returned),
        ]


def step(program: Program) -> None:
    grads = program.gradients()
    program.returned.append(program.step(grads, **program.options()))
    program.returned.append([None if g is None else g.astype(np.float64).tobytes() for g in grads.values()])


def step_with_a_nan(program: Program) -> None:
    grads = program.gradients()
    name = program.choose.choice(list(grads))
    grads[name] = np.full(program.params[name].shape, np.nan, program.dtype)
    options = program.options() | {"skip_nonfinite": True}
    program.returned.append(math.isfinite(program.step(grads, **options)))


def update_some(program: Program) -> None:
    names = program.choose.sample(list(program.params), program.choose.randint(1, len(program.params)))
    are_moved = program.choose.random() < 0.3
    params = {name: program.params[name].copy() if are_moved else program.params[name] for name in names}
    program.returned.append(program.optimizer.update(params, program.gradients(names), **program.options()))
    program.params |= params


def step_bound(program: Program) -> None:
    program.optimizer.bind({name: program.drawn(p.shape) for name, p in program.params.items()})
    program.returned += [program.optimizer.step(**program.options()), program.optimizer.step()]
    program.optimizer.bind(None)


def accumulate(program: Program) -> None:
    for _ in range(2):
        program.optimizer.accumulate({name: program.drawn(p.shape) for name, p in program.params.items()})
    program.optimizer.step()


def update_rows(program: Program) -> None:
    name = program.matrix()
    p = program.params[name]
    rows = [program.choose.randrange(len(p)) for _ in range(3)]
    grads = program.drawn((3, *p.shape[1:]))
    catch_up = program.choose.random() < 0.3
    program.optimizer.update_rows({name: p}, {name: rows}, {name: grads}, catch_up=catch_up)


def edit(program: Program) -> None:
    name, value = program.choose.choice([
        ("lr", 0.1), ("lr", 0.001), ("lr", lambda t: 0.01 / (1 + t)), ("weight_decay", 0.1), ("weight_decay", 0.0),
        ("maximize", True), ("maximize", False), ("lr_factor", 0.5),
    ])  # fmt: skip
    setattr(program.optimizer, name, value)
    program.returned.append(program.optimizer.current(name))


def write_into_a_state(program: Program) -> None:
    for state in program.optimizer.state.values():
        for values in state.values():
            if isinstance(values, np.ndarray) and values.flags.writeable and program.choose.random() < 0.3:
                values *= values.dtype.type(0.5)


def write_into_parameters(program: Program) -> None:
    for p in program.params.values():
        p *= p.dtype.type(0.9)


def add_a_parameter(program: Program) -> None:
    if len(program.params) < 8 and not program.mirror:
        name = f"p{len(program.params)}"
        program.params[name] = program.drawn((4, 3))
        if program.has_own:
            program.optimizer.add_param_group({"params": {name: program.params[name]}, "weight_decay": 0.05})


def reset(program: Program) -> None:
    program.optimizer.reset()


def save(program: Program) -> None:
    program.saved = program.optimizer.state_dict()


def load(program: Program) -> None:
    if program.saved is not None:
        program.optimizer.load_state_dict(copy.deepcopy(program.saved))


def save_a_file_and_load_it(program: Program) -> None:
    everything = {"params": program.params, "averages": tuple(program.averages)}
    fastopt.save(program.file, program.optimizer, **everything)
    step(program)
    fastopt.load(program.file, program.optimizer, **everything)


def go_on_with_a_copy(program: Program) -> None:
    together = program.optimizer, program.params, program.averages
    has_callable = any(callable(group["lr"]) for group in program.optimizer.param_groups)
    is_pickled = program.choose.random() < 0.5 and not has_callable
    found = pickle.loads(pickle.dumps(together)) if is_pickled else copy.deepcopy(together)
    program.optimizer, program.params, program.averages = found
    program.mirror = {}


def make_an_average(program: Program) -> None:
    opt = program.optimizer
    make = program.choose.choice([
        lambda: fastopt.ExponentialMovingAverage(opt, 0.9),
        lambda: fastopt.ExponentialMovingAverage(opt, 0.9, bias_correction=True),
        lambda: fastopt.StochasticWeightAverage(opt, start=1, every=2),
        lambda: fastopt.Lookahead(opt, k=2),
    ])  # fmt: skip
    if len(program.averages) < 3:
        program.averages.append(make())


def remove_an_average(program: Program) -> None:
    if program.averages:
        program.averages.pop(program.choose.randrange(len(program.averages))).remove()


def apply_an_average(program: Program) -> None:
    if program.averages:
        average = program.choose.choice(program.averages)
        with average.applied(*program.handed_over(dict(average.arrays))):
            program.returned.append([p.tobytes() for p in program.params.values()])


def make_a_mirror(program: Program) -> None:
    if not program.mirror:
        mirror = {name: np.empty(p.shape, BFLOAT16) for name, p in program.params.items()}
        program.optimizer.mirror(mirror, *program.handed_over())
        program.mirror = mirror


def evaluate(program: Program) -> None:
    if hasattr(program.optimizer, "eval"):
        program.optimizer.eval(*program.handed_over(program.optimizer.state))
        program.returned.append([p.tobytes() for p in program.params.values()])
        program.optimizer.train()


def look_ahead(program: Program) -> None:
    if hasattr(program.optimizer, "lookahead"):
        program.optimizer.lookahead(*program.handed_over())


def set_threads(program: Program) -> None:
    fastopt.set_num_threads(program.choose.choice([1, 2, 3, None]))


CALLS: list[Callable[[Program], None]] = [
    step_with_a_nan, update_some, update_some, step_bound, accumulate, update_rows, edit, edit, write_into_a_state,
    write_into_parameters, add_a_parameter, reset, save, load, save_a_file_and_load_it, go_on_with_a_copy,
    make_an_average, make_an_average, remove_an_average, apply_an_average, make_a_mirror, evaluate, look_ahead,
    set_threads, *[step] * 8,
]  # fmt: skip


OF_MORE_THAN_ONE_CALL = {step_bound, accumulate, save_a_file_and_load_it}


def run(cls: table.Class, seed: int, isas: list[str], folder: Path) -> Iterator[tuple[str, str, list[Any]]]:
    """For each call its name, what it was refused with, and what there is then. isas: one for each call."""
    fastopt.set_isa(isas[0])
    fastopt.set_num_threads(1)
    program = Program(cls, seed, folder)
    for place, isa in enumerate(isas):
        fastopt.set_isa(isa)
        program.choose = random.Random(f"{seed} {place}")
        program.returned = []
        before = program.bits()
        call, error = program.choose.choice(CALLS), ""
        try:
            call(program)
        except REFUSALS as refusal:
            error = f"{type(refusal).__name__}: {refusal}"
            assert program.bits() == before or call in OF_MORE_THAN_ONE_CALL, (
                f"a refused call has changed something: {error}"
            )
        yield call.__name__, error, program.bits()


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("cls", table.ALL, ids=lambda cls: cls.__name__)
def test_random_programs(cls: table.Class, seed: int, tmp_path: Path) -> None:
    count = 30
    isas = random.Random(seed).choices(fastopt.available_isas(), k=count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twins = list(run(cls, seed, ["numpy"] * count, tmp_path))
        kernels = list(run(cls, seed, isas, tmp_path))
    for place, (one, other) in enumerate(zip(twins, kernels, strict=True)):
        assert one == other, f"after {[name for name, _, _ in twins[: place + 1]]} with {isas[: place + 1]}"
