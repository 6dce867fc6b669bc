"""Optimizers whose step needs sums over a tensor: refused, skipped and interrupted steps, and their bits."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
import table
from table import Array, Variant

import fastopt
from fastopt import functional

WITH_SUMS = [
    next(v for v in found if table.needs_sums(v.cls, v.hyper))
    for found in ([v for v in table.VARIANTS if v.cls is cls] for cls in table.OPTIMIZERS)
    if any(table.needs_sums(v.cls, v.hyper) for v in found)
]
"""For each optimizer whose step may need sums options with which it does."""
SIZES = [(1000,), (33, 7), (), (0,), (5000,)]


def arrays(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), np.float32) for shape in SIZES]


def trained(variant: Variant) -> tuple[Any, list[Array]]:
    params = arrays(0)
    optimizer = variant.make(params)
    for step in range(2):
        optimizer.step(arrays(1 + step))
    return optimizer, params


def content(optimizer: Any, params: list[Array]) -> list[Any]:
    """All that a step changes, byte for byte."""
    states = [
        {name: np.asarray(x).tobytes() for name, x in optimizer.state[i].items()} for i in range(len(params))
    ]
    return [p.tobytes() for p in params] + states


@pytest.fixture(params=WITH_SUMS, ids=str)
def variant(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["C", "numpy"])
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "numpy":
        fastopt.set_isa("numpy")
    yield
    fastopt.set_isa(None)


Spoil = Callable[[list[Array]], list[Any]]


def last_is_not_finite(grads: list[Array]) -> list[Any]:
    grads[-1][-1] = math.nan
    return grads


def last_has_another_shape(grads: list[Array]) -> list[Any]:
    return [*grads[:-1], grads[-1][:-1]]


@pytest.mark.usefixtures("isa")
def test_a_skipped_step_changes_nothing_and_its_zeroed_gradients_do_for_the_next(variant: Variant) -> None:
    (optimizer, params), grads = trained(variant), arrays(9)
    before = content(optimizer, params)
    assert math.isnan(
        optimizer.step(last_is_not_finite(grads), skip_nonfinite=True, max_norm=1.0, zero_grads=True)
    )
    assert content(optimizer, params) == before
    assert not any(g.any() for g in grads)
    optimizer.step(grads, skip_nonfinite=True)
    assert all(np.isfinite(p).all() for p in params)
    assert optimizer.state[0]["step"] == 3


@pytest.mark.usefixtures("isa")
def test_a_refused_gradient_changes_nothing(variant: Variant) -> None:
    optimizer, params = trained(variant)
    before = content(optimizer, params)
    with pytest.raises(ValueError, match="parameter 4"):
        optimizer.step(last_has_another_shape(arrays(9)), max_norm=1.0)
    assert content(optimizer, params) == before


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_prepare_changes_nothing(
    variant: Variant, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    (optimizer, params), (other, others) = trained(variant), trained(variant)
    before, prepare = content(optimizer, params), variant.cls.algorithm.prepare

    def failing(h: Any, t: Any, sums: Any, numbers: Any) -> Any:
        prepare(h, t, sums, numbers)
        raise error

    monkeypatch.setattr(variant.cls.algorithm, "prepare", failing)
    with pytest.raises(error):
        optimizer.step(arrays(9), max_norm=1.0)
    assert content(optimizer, params) == before
    monkeypatch.setattr(variant.cls.algorithm, "prepare", prepare)
    for optimizer_, params_ in (optimizer, params), (other, others):
        assert optimizer_.step(arrays(9), max_norm=1.0) is not None
        assert content(optimizer_, params_) != before
    assert content(optimizer, params) == content(other, others)


@pytest.mark.usefixtures("isa")
def test_a_signal_between_sums_and_update_sees_all_as_before(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, params = trained(variant)
    before, prepare, seen = content(optimizer, params), variant.cls.algorithm.prepare, []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(content(optimizer, params))
        optimizer.state_dict()

    def signalled(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return prepare(*arguments)

    monkeypatch.setattr(variant.cls.algorithm, "prepare", signalled)
    former = signal.signal(signal.SIGUSR1, handler)
    try:
        optimizer.step(arrays(9))
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert seen == [before]
    assert optimizer.state[0]["step"] == 3


@pytest.mark.parametrize("wrong", [(), (1.0, 1.0, 1.0)])
def test_the_wrong_number_of_factors_is_refused(
    variant: Variant, wrong: tuple[Any, ...], monkeypatch: Any
) -> None:
    optimizer, params = trained(variant)
    before = content(optimizer, params)
    monkeypatch.setattr(variant.cls.algorithm, "prepare", lambda *_: wrong)
    with pytest.raises(ValueError, match=r"prepare must return \d factors, got"):
        optimizer.step(arrays(9))
    assert content(optimizer, params) == before


@pytest.mark.parametrize("wrong", [(), (1.0,) * 9])
def test_the_wrong_number_of_first_factors_is_refused(
    variant: Variant, wrong: tuple[Any, ...], monkeypatch: Any
) -> None:
    optimizer, params = trained(variant)
    before = content(optimizer, params)
    monkeypatch.setattr(variant.cls.algorithm, "first_factors", staticmethod(lambda *_: wrong))
    with pytest.raises(ValueError, match=r"first_factors must return \d factors, got"):
        optimizer.step(arrays(9))
    assert content(optimizer, params) == before


def test_bits_depend_on_neither_threads_nor_instruction_set(variant: Variant) -> None:
    found = []
    for isa in fastopt.available_isas():
        for threads in (1, 2, 5) if isa != "numpy" else (1,):
            fastopt.set_isa(isa)
            fastopt.set_num_threads(threads)
            params = [np.linspace(-1, 2, size, dtype=np.float32) for size in (4095, 4096, 4097, 65_537)]
            optimizer = variant.make(params)
            for step in range(2):
                optimizer.step([np.cos(p * (step + 1)) for p in params], max_norm=1.0)
            found.append(content(optimizer, params))
    assert all(one == found[0] for one in found)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_norms_of_zero(variant: Variant, start: float) -> None:
    """No division by 0: where a norm is 0, the step is that of the optimizer without its norms."""
    params = [np.full(3, start)]
    optimizer = Variant(variant.cls, variant.options | {"weight_decay": 0.0}).make(params)
    optimizer.step([np.zeros(3)])
    optimizer.step([np.full(3, 0.5)])
    assert np.isfinite(params[0]).all()
    assert (params[0] < start).all()


@pytest.mark.parametrize("cls", table.OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_a_step_without_any_gradient(cls: Any) -> None:
    params = arrays(0)
    optimizer = cls(params)
    for grads in [None] * len(params), arrays(1), [None] * len(params):
        before = content(optimizer, params)
        optimizer.step(grads)
        assert (content(optimizer, params) == before) == (grads[0] is None)


WITH_NUMBERS = [cls for cls in table.OPTIMIZERS if table.numbers_of(cls)]


@pytest.mark.parametrize("cls", WITH_NUMBERS, ids=lambda cls: cls.__name__)
def test_a_number_of_a_function_must_be_an_array_of_its_own(cls: Any) -> None:
    function = getattr(functional, cls.__name__.lower())
    param, grad = np.ones(3), np.ones(3)
    buffers = {name: np.zeros(3) for name in table.states_in_use(cls, table.defaults_of(cls))}
    first = table.first_numbers(cls)
    numbers = {name: np.array(first[name]) for name in table.numbers_of(cls)}
    for name in numbers:
        shared = [param, grad, *buffers.values()]
        masked: Any = np.ma.MaskedArray(0.0)
        wrong = {
            "missing; pass a 0-d float64 array": [None],
            "expected a 0-d float64 array": [0.0, np.float64(0), np.zeros(1), np.zeros((), np.float32), [0.0]],
            "masked": [masked],
            "read-only": [np.broadcast_to(np.zeros(()), ())],
            "share memory; pass an array of its own": [array[1:2].reshape(()) for array in shared],
        }
        for message, values in wrong.items():
            for value in values:
                with pytest.raises((TypeError, ValueError), match=rf"^{name}.*{message}"):
                    function(param, grad, **buffers, **numbers | {name: value}, step=1)
                assert param.tolist() == [1, 1, 1]
                assert not any(array.any() for array in buffers.values())
                assert {name: float(array) for name, array in numbers.items()} == first
    function(param, grad, **buffers, **numbers, step=1)
    assert (param < 1).all()
