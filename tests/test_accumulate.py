"""Gradients that are added up over several calls."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array

import fastopt

SHAPES = [(3, 4), (4,), (), (0,)]


def made(seed: int, dtype: Any = np.float32) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in SHAPES]


@pytest.mark.parametrize("variant", table.BASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_takes_the_mean(variant: table.Variant, dtype: str) -> None:
    params, others = made(0, dtype), made(0, dtype)
    optimizer, other = variant.make(params), variant.make(others)
    for step in range(3):
        parts = [made(10 * step + k, dtype) for k in range(1, 5)]
        for part in parts:
            optimizer.accumulate(part)
        optimizer.step()
        sums = [np.asarray(a + b + c + d) for a, b, c, d in zip(*parts, strict=True)]
        other.step([np.asarray(total / total.dtype.type(4)) for total in sums])
        assert table.bits(optimizer, params) == table.bits(other, others)
    with pytest.raises(TypeError, match="needs gradients"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_sums_of_16_bits_are_of_float32(dtype: Any) -> None:
    params, others = made(0, dtype), made(0, dtype)
    optimizer, other = fastopt.Adam(params), fastopt.Adam(others)
    parts = [made(k, ml_dtypes.bfloat16) for k in range(1, 9)]
    for part in parts:
        optimizer.accumulate(part)
    optimizer.step()
    wide = [[g.astype(np.float32) for g in part] for part in parts]
    sums = wide[0]
    for part in wide[1:]:
        sums = [np.asarray(a + b) for a, b in zip(sums, part, strict=True)]
    other.step([np.asarray(total / np.float32(8)) for total in sums])
    assert table.bits(optimizer, params) == table.bits(other, others)


def test_names_layouts_and_none() -> None:
    w, b, alone = np.ones((2, 3)), np.ones(3), np.ones(2)
    optimizer = fastopt.SGD({"w": w, "b": b, "alone": alone}, lr=1.0)
    optimizer.accumulate({"w": np.full((3, 2), 2.0).T, "b": np.ones(3), "alone": None})
    optimizer.accumulate({"w": np.zeros((2, 3)), "b": None, "alone": None})
    optimizer.step()
    assert (w == 0.0).all()
    assert (b == 0.5).all()
    assert (alone == 1.0).all()
    assert [s["step"] for s in optimizer.state.values()] == [1, 1, 0]


def test_gradients_are_copied_and_never_written() -> None:
    p = np.ones(3)
    optimizer, grad = fastopt.SGD([p], lr=1.0), np.ones(3)
    optimizer.accumulate([grad])
    optimizer.accumulate([grad])
    assert (grad == 1).all()
    grad[...] = 100
    optimizer.step()
    assert (p == 0).all()


def test_a_refused_call_adds_nothing() -> None:
    params, others = made(0), made(0)
    optimizer, other = fastopt.Adam(params), fastopt.Adam(others)
    optimizer.accumulate(made(1))
    wrong: list[Any] = [[], made(2)[:3], [*made(2)[:3], np.ones(3)], [made(2)[0].T, *made(2)[1:]], [*params]]
    for grads in wrong:
        with pytest.raises((TypeError, ValueError)):
            optimizer.accumulate(grads)
    with pytest.raises(TypeError, match="grad_scale"):
        optimizer.step(grad_scale="x")  # type: ignore[arg-type]
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-3
    optimizer.accumulate(made(2))
    optimizer.step()
    other.step([np.asarray((a + b) / np.float32(2)) for a, b in zip(made(1), made(2), strict=True)])
    assert table.bits(optimizer, params) == table.bits(other, others)


def test_it_is_refused_while_gradients_are_bound() -> None:
    params = made(0)
    optimizer = fastopt.Adam(params)
    optimizer.bind(made(1))
    with pytest.raises(RuntimeError, match=r"call bind\(None\) first"):
        optimizer.accumulate(made(2))
    optimizer.bind(None)
    optimizer.accumulate(made(2))
    with pytest.raises(TypeError, match="update"):
        fastopt.Adam().accumulate([np.ones(3)])


def test_parameters_that_come_later_are_left_alone() -> None:
    params, late = made(0), np.ones(3, np.float32)
    optimizer = fastopt.Adam(params)
    optimizer.accumulate(made(1))
    optimizer.add_param_group({"params": late})
    optimizer.step()
    assert [s["step"] for s in optimizer.state.values()] == [1, 1, 1, 1, 0]
    optimizer.accumulate([*made(1), late * 2])
    optimizer.reset()  # drops it
    with pytest.raises(TypeError, match="needs gradients"):
        optimizer.step()


def test_a_step_with_gradients_leaves_the_sum() -> None:
    p = np.zeros(3)
    optimizer = fastopt.SGD([p], lr=1.0)
    optimizer.accumulate([np.ones(3)])
    optimizer.step([np.full(3, 10.0)])
    assert (p == -10).all()
    optimizer.step()
    assert (p == -11).all()


def test_zeros_cannot_be_written_into_what_was_added_up() -> None:
    params, others, grads = [np.ones(3)], [np.ones(3)], [np.ones(3)]
    optimizer, other = fastopt.SGD(params), fastopt.SGD(others)
    optimizer.accumulate(grads)
    grads[0][...] = 0
    with pytest.raises(ValueError, match=r"^zero_grads: .*write zeros into the arrays after each accumulate\(\)"):
        optimizer.step(zero_grads=True)
    optimizer.step()
    other.step([np.ones(3)], zero_grads=True)
    assert params[0].tobytes() == others[0].tobytes()
