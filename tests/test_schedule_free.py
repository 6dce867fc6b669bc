"""The schedule-free optimizers: the change between training and evaluation."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import table

import fastopt
from fastopt.schedule_free import ScheduleFree

CLASSES = [cls for cls in table.OPTIMIZERS if issubclass(cls, ScheduleFree)]


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


def trained(cls: Any, dtype: str = "float64", steps: int = 5, **options: Any) -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape).astype(table.dtype_of(dtype)) for shape in ((4, 3), (), (0,))]
    optimizer = cls(params, lr=0.1, **options)
    for _ in range(steps):
        optimizer.step([rng.standard_normal(p.shape).astype(p.dtype) for p in params])
    return optimizer, params


def test_eval_gives_the_average_of_the_z(cls: Any) -> None:
    """x is the mean of all z, weighted by lr^2, which is constant here."""
    param, seen = np.array([1.0, -2.0]), []
    optimizer = cls([param], lr=0.1)
    for step in range(20):
        optimizer.step([np.cos(param + step)])
        seen.append(optimizer.state[0]["z"].copy())
    optimizer.eval()
    assert np.abs(param - np.mean(seen, axis=0)).max() < 1e-14


@pytest.mark.parametrize("dtype", table.DTYPES)
def test_train_puts_back_the_bits(cls: Any, dtype: str) -> None:
    optimizer, params = trained(cls, dtype)
    before = table.bits(optimizer, params)
    assert optimizer.is_training
    for _ in range(2):  # the second call changes nothing
        optimizer.eval()
        assert not optimizer.is_training
        assert table.bits(optimizer, params) != before
    for _ in range(2):
        optimizer.train()
        assert optimizer.is_training
        assert table.bits(optimizer, params) == before
    optimizer.step([np.ones_like(p) for p in params])


def test_before_the_first_step_there_is_nothing_to_average(cls: Any) -> None:
    optimizer, params = trained(cls, steps=0)
    before = [p.copy() for p in params]
    optimizer.eval()
    assert all(map(np.array_equal, params, before))
    optimizer.train()


def test_no_step_and_no_load_between_eval_and_train(cls: Any) -> None:
    optimizer, params = trained(cls)
    saved, grads = optimizer.state_dict(), [np.ones_like(p) for p in params]
    optimizer.eval()
    before = table.bits(optimizer, params)
    for call in (
        lambda: optimizer.step(grads),
        lambda: optimizer.update(params, grads),
        lambda: optimizer.load_state_dict(saved),
        lambda: copy.copy(optimizer),
        lambda: pickle.dumps(optimizer),
    ):
        with pytest.raises(RuntimeError, match=r"call train\(\)"):
            call()
    assert table.bits(optimizer, params) == before
    assert optimizer.state_dict()["state"][0]["step"] == saved["state"][0]["step"]
    optimizer.train()  # the advice
    optimizer.step(grads)
    pickle.loads(pickle.dumps(optimizer)).step(grads)


def test_a_checkpoint_of_an_evaluation_goes_on_with_the_training(cls: Any, tmp_path: Path) -> None:
    optimizer, params = trained(cls)
    optimizer.eval()
    fastopt.save(tmp_path / "file.npz", optimizer)
    optimizer.train()
    other, others = trained(cls, steps=0)
    fastopt.load(tmp_path / "file.npz", other)
    for one, its in (optimizer, params), (other, others):
        one.step([np.full_like(p, 0.5) for p in its])
    assert table.bits(optimizer, params) == table.bits(other, others)


def test_parameters_that_are_handed_over(cls: Any) -> None:
    (optimizer, params), other = trained(cls), cls(lr=0.1)
    rng, others = np.random.default_rng(0), {}
    others = {name: rng.standard_normal(p.shape) for name, p in zip("abc", params, strict=True)}
    for _ in range(5):
        other.update(others, {name: rng.standard_normal(p.shape) for name, p in others.items()})
    with pytest.raises(TypeError, match=r"pass eval\(params=...\)"):
        other.eval()
    with pytest.raises(ValueError, match="'d': it has made no step"):
        other.eval({"d": np.ones(3)})
    with pytest.raises(ValueError, match="'a': it is not like the parameter of that name"):
        other.eval({"a": np.ones(3)})
    optimizer.eval()
    other.eval(others)
    assert all(map(np.array_equal, params, others.values()))
    other.train()


def test_no_average_of_an_average(cls: Any) -> None:
    optimizer, _ = trained(cls)
    for average in fastopt.ExponentialMovingAverage, fastopt.StochasticWeightAverage, fastopt.Lookahead:
        with pytest.raises(TypeError, match=r"averages the parameters itself; call opt.eval\(\)"):
            average(optimizer)


def test_momentum_is_not_0(cls: Any) -> None:
    wrong = {"momentum": 0.0} if cls is fastopt.ScheduleFreeSGD else {"betas": (0.0, 0.9)}
    with pytest.raises(ValueError, match="out of range"):
        cls([np.ones(3)], **wrong)
