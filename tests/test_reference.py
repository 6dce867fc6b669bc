"""The frame around the NumPy twins: the fixed order of sums, and a twin that makes sums."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastopt import reference, storage
from fastopt.algorithm import Algorithm, Array
from fastopt.reference import SUM_BLOCK, SUM_LANES, block_sums, total


def block_sum_by_hand(values: Array) -> float:
    """The order of a sum, element by element, as it is written down for every implementation."""
    lanes = [0.0] * SUM_LANES
    for i, value in enumerate(values.tolist()):
        lanes[i % SUM_LANES] += value
    for distance in 8, 4, 2, 1:
        lanes = [lanes[i] + lanes[i + distance] for i in range(distance)]
    return lanes[0]


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 33, 4095, 4096, 4097, 3 * 4096 + 5])
def test_the_order_of_a_sum(size: int) -> None:
    generator = np.random.default_rng(size)
    values = generator.standard_normal(size) * 10.0 ** generator.integers(-8, 8, size)
    expected = [block_sum_by_hand(values[i : i + SUM_BLOCK]) for i in range(0, size, SUM_BLOCK)]
    found = block_sums(values)
    assert found.tolist() == expected
    added = 0.0
    for number in expected:
        added += number
    assert total(found[:, np.newaxis]).tolist() == [added]


def test_sums_of_hard_values() -> None:
    assert np.signbit(block_sums(np.full(3, -0.0))).tolist() == [False]
    assert block_sums(np.array([np.inf, 1.0])).tolist() == [np.inf]
    assert np.isnan(block_sums(np.array([np.inf, -np.inf]))).all()
    assert block_sums(np.full(2, 3e38, np.float32)).tolist() == [2 * float(np.float32(3e38))]


class Trust(Algorithm):
    """A formula with sums and a factor, as LAMB's."""

    formula = "trust"
    states = {"m": "m"}

    @staticmethod
    def twin(p: Array, g: Array, m: Array, beta: Any, trust: Any) -> tuple[Array, ...]:
        m *= beta
        m += g
        pp = p * p
        mm = m * m
        p -= trust * m
        return pp, mm


SCALARS = [0.5, 2.0, 0.1, 0.9]  # beta; grad_scale, weight_decay, decay


@pytest.mark.parametrize("dtype", ["float32", "float64", ml_dtypes.bfloat16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_sums_of_a_formula(order: Any, dtype: Any) -> None:
    p, g, m = (np.random.default_rng(k).standard_normal((70, 90)).astype(dtype, order=order) for k in range(3))
    before = [a.tobytes() for a in (p, g, m)]
    found = storage.sums(Trust, p, g, [m], SCALARS, factors=[1.0])
    assert [a.tobytes() for a in (p, g, m)] == before
    assert found.shape == (2, 2)
    wide = [np.array(storage.widened(a)) for a in (p, g, m)]
    pp, mm = reference.update(Trust, wide[0], wide[1], wide[2:], SCALARS, [1.0])
    assert found.tolist() == np.stack([block_sums(x.ravel(order)) for x in (pp, mm)], axis=1).tolist()
    one = wide[0].dtype.type
    decayed = one(0.9) * storage.widened(p)
    np.testing.assert_array_equal(pp, decayed * decayed)


def test_a_factor_reaches_the_update() -> None:
    p, g, m = np.ones(3), np.ones(3), np.zeros(3)
    storage.update(Trust, p, g, [m], [0.5, 1.0, 0.0, 1.0], 0, 0, [0.25])
    assert p.tolist() == [0.75] * 3
    assert m.tolist() == [1.0] * 3


def test_sums_of_a_number() -> None:
    found = reference.sums(Trust, np.array(3.0), np.array(1.0), [np.array(0.0)], [0.5, 1.0, 0.0, 1.0], [1.0])
    assert found.tolist() == [[9.0, 1.0]]
    nothing = np.ones((0, 4))
    assert reference.sums(Trust, nothing, nothing, [nothing], SCALARS, [1.0]).shape == (0, 2)
