"""Numbers at the ends of what a dtype holds: large gradients, small quotients, small eps, small decay."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import named

import fastopt

ADDS_WHOLE_SQUARES = {"Adafactor", "Adagrad", "FTRL", "ADOPT"}
"""Their sums of squares, or the first of these, have no factor below 1, so float32 ends at the root of its largest
number, as in torch."""

CASES = [
    *(
        pytest.param(cls, {}, id=cls.__name__)
        for cls in table.OPTIMIZERS
        if cls.__name__ not in ADDS_WHOLE_SQUARES
    ),
    pytest.param(fastopt.Adam, {"amsgrad": True}, id="Adam with amsgrad"),
    pytest.param(fastopt.Adam, {"eps": 0.0, "eps_root": 1e-8}, id="Adam with eps_root"),
    pytest.param(fastopt.Adam, {"bias_correction": False}, id="Adam without bias correction"),
    pytest.param(fastopt.RMSprop, {"momentum": 0.9}, id="RMSprop with momentum"),
]


@pytest.mark.parametrize(("cls", "options"), CASES)
@pytest.mark.parametrize("size", [1e17, 3e19])
def test_large_gradients_of_float32(cls: Any, options: dict[str, Any], size: float) -> None:
    signs = np.array([1.0, -0.5, 0.25])
    narrow, wide = [np.ones(3, dtype) for dtype in (np.float32, np.float64)]
    first, second = cls([narrow], **options), cls([wide], **options)
    for step in range(6):
        grad = (signs * size * (1 if step < 3 else 0.5)).astype(np.float32)
        first.step([grad])
        second.step([grad.astype(np.float64)])
        for name, state in first.state[0].items():
            assert np.isfinite(np.asarray(state, np.float64)).all(), name
        np.testing.assert_allclose(narrow, wide, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", [fastopt.Adam, fastopt.AdamW, fastopt.AdEMAMix], ids=lambda c: c.__name__)
def test_the_largest_gradients_of_float32(cls: Any) -> None:
    """torch's Adam goes on until (1 - beta2) * g * g is infinite."""
    param = np.ones(3, np.float32)
    optimizer = cls([param])
    optimizer.step([np.full(3, 5.7e20, np.float32)])
    for _ in range(10):
        before = param.copy()
        optimizer.step([np.full(3, 1e19, np.float32)])
        assert np.isfinite(param).all()
        assert (param < before).all()


@pytest.mark.parametrize(("eps", "size"), [(1e-30, 1e6), (1e-20, 1e12), (1e-6, 1e17)])
def test_adadelta_with_a_quotient_below_the_normal_numbers(eps: float, size: float) -> None:
    narrow, wide = [np.zeros(3, dtype) for dtype in (np.float32, np.float64)]
    first, second = fastopt.Adadelta([narrow], eps=eps), fastopt.Adadelta([wide], eps=eps)
    for _ in range(3):
        grad = np.array([1.0, -0.7, 0.3]) * size
        first.step([grad.astype(np.float32)])
        second.step([grad.astype(np.float32).astype(np.float64)])
    np.testing.assert_allclose(narrow, wide, rtol=1e-5)


# -- Decoupled weight decay of bfloat16 --------------------------------------------------------------

NUMBERS = [1.0, 1.0078125, 1.5, 1.9921875]


def mean_loss(number: float, lost: float, steps: int, update: float) -> float:
    """The part that a bfloat16 loses by decay in a step, in the mean over many elements and steps.

    Measured against steps without decay that are rounded by the same random bits. update: the size of other changes.
    """
    size = 2**22
    grad = np.random.default_rng(0).standard_normal(size, np.float32) * np.float32(update)
    means = []
    for weight_decay in (0.0, lost):
        param = np.full(size, number, ml_dtypes.bfloat16)
        optimizer = fastopt.SGD([param], lr=1.0, weight_decay=weight_decay, decoupled_weight_decay=True)
        for step in range(steps):
            optimizer.step([grad if step % 2 else -grad])
        means.append(float(param.astype(np.float32).mean(dtype=np.float64)))
    return float(1.0 - (means[1] / means[0]) ** (1.0 / steps))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("update", [0.0, 1e-3])
@pytest.mark.parametrize(
    ("lost", "steps"),
    [
        (1e-3, 2),
        (1e-4, 2),
        (1.3e-5, 8),
        (1e-6, 30),
        *(pytest.param(lost, 120, marks=table.nightly) for lost in (2.0**-22, 2.7e-7, 5e-7)),
    ],
)
def test_small_decay_of_bfloat16_is_right_in_the_mean(
    number: float, lost: float, steps: int, update: float
) -> None:
    assert mean_loss(number, lost, steps, update) == pytest.approx(lost, rel=0.02)


def test_the_smallest_decay_of_bfloat16_is_right_in_the_mean() -> None:
    assert mean_loss(1.5, 2.7e-7, 120, 0.0) == pytest.approx(2.7e-7, rel=0.02)


@pytest.mark.parametrize("value", [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-37, 3e38])
def test_decay_of_bfloat16_at_the_ends(value: float) -> None:
    param = np.full(1000, value, ml_dtypes.bfloat16)
    fastopt.SGD([param], lr=1.0, weight_decay=1e-4, decoupled_weight_decay=True).step([np.zeros(1000, np.float32)])
    found = param.astype(np.float64)
    if value == 0 or not np.isfinite(value):
        np.testing.assert_array_equal(found, value)
    else:
        np.testing.assert_allclose(found, value, rtol=0.01)


# -- An eps that the dtype cannot hold ---------------------------------------------------------------

EPSILONS = [
    (cls, name)
    for cls in table.OPTIMIZERS
    for name, option in table.declared(cls).items()
    if getattr(option.kind, "is_held", False) and not isinstance(option.default, bool)
]
BELOW_FLOAT32 = 1e-46


@pytest.mark.parametrize(("cls", "name"), EPSILONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_eps_that_is_0_in_float32_is_refused(cls: Any, name: str, dtype: str) -> None:
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    param, grad = np.ones(2, dtype), np.ones(2, np.float32)
    wrong = rf"{name}: 1e-46 is 0 in float32, in which parameter 0 is updated; use 0, or at least 1.4e-45"
    with pytest.raises(ValueError, match=rf"^group 0: {wrong}"):
        cls([param], **{name: BELOW_FLOAT32})
    optimizer = cls([param])
    optimizer.param_groups[0][name] = BELOW_FLOAT32
    with pytest.raises(ValueError, match=rf"^group 0: {wrong}"):
        optimizer.step([grad])
    optimizer.param_groups[0][name] = lambda step: BELOW_FLOAT32
    with pytest.raises(
        ValueError, match=rf"^group 0: {name}, as its callable returned it: .* return 0, or at least"
    ):
        optimizer.step([grad])
    with pytest.raises(ValueError, match="is 0 in float32"):
        cls(**{name: BELOW_FLOAT32}).update([param], [grad])
    with pytest.raises(ValueError, match="is 0 in float32"):
        saved = optimizer.state_dict()
        saved["param_groups"][0][name] = BELOW_FLOAT32
        cls([param]).load_state_dict(saved)
    assert param.astype(np.float64).tolist() == [1, 1]
    for right in (0.0, 1.4e-45):  # the advice
        optimizer.param_groups[0][name] = right
        optimizer.step([grad])


@pytest.mark.parametrize(("cls", "name"), EPSILONS)
def test_an_eps_that_float64_holds_is_taken(cls: Any, name: str) -> None:
    param = np.ones(2)
    optimizer = cls([param], **{name: BELOW_FLOAT32})
    optimizer.step([np.ones(2)])
    optimizer.param_groups[0][name] = 2 * BELOW_FLOAT32
    optimizer.step([np.ones(2)])
    assert np.isfinite(param).all()


def test_functions_refuse_an_eps_that_is_0_in_float32() -> None:
    for dtype in (np.float32, np.float64):
        arrays = [np.ones(2, dtype) for _ in range(4)]
        for _ in range(2):
            if dtype is np.float64:
                fastopt.functional.adam(*arrays, step=1, eps=BELOW_FLOAT32)
            else:
                with pytest.raises(ValueError, match=r"^eps: 1e-46 is 0 in float32, in which 'param' is updated"):
                    fastopt.functional.adam(*arrays, step=1, eps=BELOW_FLOAT32)


NUMBERS = [1e-300, 1e-40, 1e40, 1e300]


@pytest.mark.parametrize("cls", table.OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_enormous_options_are_refused_or_step(cls: Any) -> None:
    """No power, product or root of theirs raises in a step."""
    for name, default in table.options_of(cls).items():
        for number in NUMBERS if not isinstance(default, bool | str | tuple) else []:
            params = [np.ones(3)]
            try:
                optimizer = cls(params, **{name: number})
            except (TypeError, ValueError):
                continue
            for step in range(3):
                with named((name, number)):
                    optimizer.step([np.full(3, 0.5 + step)])
