"""The hyper-parameter algebra in double precision: bias correction, for any number of steps."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import table
from hypothesis import given, settings
from hypothesis import strategies as st
from table import bias_correction

import fastopt

LONG = 2**31
"""More steps than a 32-bit integer counts."""


def exact_bias_correction(beta: float, t: int) -> mpmath.mpf:
    with mpmath.workdps(60):
        return 1 - mpmath.mpf(beta) ** t


def relative_error(got: float, exact: mpmath.mpf) -> float:
    with mpmath.workdps(60):
        return float(abs(got - exact) / exact)


@pytest.mark.parametrize("beta", [0.9, 0.999, 1 - 1e-8, 0.0, 1e-300, 1e-8, 0.5, 0.95, 0.99, 0.9999, 1 - 1e-15])
def test_bias_correction(beta: float) -> None:
    for t in 1, 2, 3, 10, 10**3, 10**4, 10**6, LONG - 1, LONG, LONG + 1, 2**40:
        assert relative_error(bias_correction(beta, t), exact_bias_correction(beta, t)) < 1e-14, f"t = {t}"


@settings(derandomize=True, database=None, deadline=None)
@given(beta=st.floats(0, 1, exclude_max=True), t=st.integers(1, 2**40))
def test_bias_correction_anywhere(beta: float, t: int) -> None:
    assert relative_error(bias_correction(beta, t), exact_bias_correction(beta, t)) < 1e-14


def test_bias_correction_does_not_depend_on_what_was_asked_before() -> None:
    asked = [(beta, t) for beta in (0.9, 0.999, 0.5, 1 - 1e-9) for t in (1, 2, 3, 1000, 1001, 2**40 + 1)]
    one_by_one = [bias_correction(*of) for of in asked]
    backwards = [bias_correction(*of) for of in reversed(asked)]
    in_turns = sorted(asked, key=lambda of: of[1])
    assert one_by_one == backwards[::-1]
    assert dict(zip(asked, one_by_one, strict=True)) == {of: bias_correction(*of) for of in in_turns}


def resumed(variant: table.Variant, params: list[table.Array], step: int) -> tuple[fastopt.Optimizer, table.Array]:
    """An optimizer that goes on after ``step`` steps, and the gradient of the last one."""
    optimizer = variant.make(params)
    grad = table.plain_values(params[0].size, params[0].dtype.name, 1)
    optimizer.step([grad])
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = step
    optimizer.load_state_dict(saved)
    return optimizer, grad


@pytest.mark.parametrize("beta2", [0.999, 1 - 1e-8])
@pytest.mark.parametrize("step", [0, 9, LONG - 1, LONG, 2**40])
def test_adam_after_many_steps(step: int, beta2: float) -> None:
    lr, eps = 0.1, 1e-8
    variant = table.Variant(fastopt.Adam, {"lr": lr, "betas": (0.9, beta2), "eps": eps})
    params = [table.plain_values(7, "float64", 0)]
    optimizer, grad = resumed(variant, params, step)
    before = params[0].copy()
    optimizer.step([grad])
    state = optimizer.state[0]
    assert state["step"] == step + 1
    m_hat = state["exp_avg"] / float(exact_bias_correction(0.9, step + 1))
    v_hat = state["exp_avg_sq"] / float(exact_bias_correction(beta2, step + 1))
    np.testing.assert_allclose(params[0], before - lr * m_hat / (np.sqrt(v_hat) + eps), rtol=1e-13)


@pytest.mark.parametrize("dtype", table.DTYPES)
@pytest.mark.parametrize("variant", table.BASES, ids=lambda v: v.cls.__name__)
def test_steps_are_counted_in_64_bits(variant: table.Variant, dtype: str) -> None:
    results = []
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        params = [table.plain_values(1003, dtype, 0)]
        optimizer, grad = resumed(variant, params, LONG - 2)
        for _ in range(4):
            optimizer.step([grad])
        assert optimizer.state[0]["step"] == LONG + 2
        assert np.isfinite(params[0]).all()
        results.append(table.bits(optimizer, params))
    assert all(result == results[-1] for result in results)


def test_schedules_see_the_long_count() -> None:
    seen = []

    def lr(step: int) -> float:
        seen.append(step)
        return 0.1

    params = [np.ones(3)]
    variant = table.Variant(fastopt.Adam, {"lr": lr})
    optimizer, grad = resumed(variant, params, LONG)
    optimizer.step([grad[:3]])
    assert seen[-1] == LONG
