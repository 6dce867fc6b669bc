"""Numbers in 16 bits: how they are rounded, what of it depends on what, and what is refused."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array

import fastopt
from fastopt import functional

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ALL_PATTERNS = np.arange(2**16, dtype=np.uint16)
LARGEST = np.uint32(0x7F7F0000)

every_isa = pytest.mark.parametrize("isa", fastopt.available_isas())


def rounded(values: Array, seed: int = 0, step: int = 1) -> Array:
    """float32 values as a step stores them in a parameter of bfloat16."""
    param = np.zeros(values.shape, BFLOAT16)
    functional.sgd(param, -values, step=step, lr=1.0, seed=seed)
    return param


def halfway(size: int) -> Array:
    """Numbers half a unit above their lower neighbour: rounded to it or to 1 with the same probability."""
    return np.full(size, 0x3F7F8000, np.uint32).view(np.float32)


def signs(size: int, seed: int = 0, step: int = 1) -> Array:
    """1 where such a number was rounded up, else -1."""
    return np.where(rounded(halfway(size), seed, step) == 1, 1.0, -1.0)


def correlation(a: Array, b: Array) -> float:
    """In standard deviations of that of independent numbers."""
    return float(np.corrcoef(a, b)[0, 1] * len(a) ** 0.5)


# -- Rounding --------------------------------------------------------------------------------------


def test_only_to_a_neighbour() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    lower = values.view(np.uint32) >> 16  # nearer to zero
    steps = rounded(values).view(np.uint16) - lower
    assert set(steps.tolist()) == {0, 1}


def test_right_in_the_mean() -> None:
    values, seeds = np.random.default_rng(1).standard_normal(2000).astype(np.float32), 500
    above = (values.view(np.uint32) & 0xFFFF) / 2**16
    lower = (values.view(np.uint32) >> 16).astype(np.int64)
    ups = sum(rounded(values, seed).view(np.uint16) - lower for seed in range(seeds))
    deviations = (ups - seeds * above) / np.sqrt(seeds * above * (1 - above) + 1e-3)
    assert np.abs(deviations).max() < 5.5
    assert abs(np.mean(deviations)) * len(values) ** 0.5 < 4
    assert 0.85 < np.mean(deviations**2) < 1.15


@every_isa
def test_what_is_a_bfloat16_stays(isa: str) -> None:
    fastopt.set_isa(isa)
    for seed in range(3):
        param = ALL_PATTERNS.view(BFLOAT16).copy()
        functional.sgd(param, np.zeros(param.shape, np.float32), step=1, seed=seed)
        is_nan = ALL_PATTERNS & 0x7FFF > 0x7F80
        np.testing.assert_array_equal(param.view(np.uint16), np.where(is_nan, 0x7FC0, ALL_PATTERNS))


@every_isa
@pytest.mark.parametrize("sign", [1, -1])
def test_beyond_the_largest_is_infinity(isa: str, sign: int) -> None:
    fastopt.set_isa(isa)
    size = 40_000
    above = np.full(size, LARGEST + 0x4000, np.uint32).view(np.float32) * np.float32(sign)
    found = rounded(above).astype(np.float64) * sign
    assert set(found) == {float(LARGEST.view(np.float32)), np.inf}
    assert abs(np.isinf(found).mean() - 0.25) < 0.02


@every_isa
def test_nan_and_infinity(isa: str) -> None:
    fastopt.set_isa(isa)
    patterns = np.array([0x7F800001, 0x7FBFFFFF, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32)
    nans = np.repeat(patterns, 1000).view(np.float32)
    assert set(rounded(nans).view(np.uint16)) == {0x7FC0}
    infinities = np.repeat(np.array([np.inf, -np.inf], np.float32), 1000)
    np.testing.assert_array_equal(rounded(infinities).astype(np.float32), infinities)


def test_a_slow_average_moves() -> None:
    """With beta2 = 0.999 an increment is less than half a unit: to the nearest, the average would stand."""
    steps, grad = 5000, np.ones(1000, np.float32)
    optimizer = fastopt.Adam([np.zeros(1000, np.float32)], state_dtype="bfloat16")
    nearest = np.zeros((), BFLOAT16)
    for _ in range(steps):
        optimizer.step([grad])
        nearest = np.float32(0.999 * nearest.astype(np.float32) + 0.001).astype(BFLOAT16)
    exact = 1 - 0.999**steps
    assert nearest < 0.3 * exact
    averages = optimizer.state[0]["exp_avg_sq"].astype(np.float64)
    assert abs(averages.mean() - exact) < 0.005
    assert averages.std() < 0.1


# -- Random bits -----------------------------------------------------------------------------------

SIZE = 2**17


def test_bits_are_independent_of_those_of_other_elements() -> None:
    found = signs(SIZE)
    assert abs(found.mean()) * SIZE**0.5 < 4
    lags = [*range(1, 40), *(2**k for k in range(6, 15))]
    assert max(abs(correlation(found[:-lag], found[lag:])) for lag in lags) < 4.5


def test_pairs_of_elements_are_evenly_spread() -> None:
    size = 2**20
    draws = table.random_bits(0x0123456789ABCDEF, 0, np.zeros(size))
    buffers = [next(draws) >> np.uint32(10) for _ in range(2)]
    for lag in 1, 2, 3, 5, 8, 16, 64, 89, 1000, 4096:
        for a, b in itertools.product(buffers, buffers):
            counts = np.bincount(a[:-lag] << np.uint32(6) | b[lag:], minlength=2**12)
            mean = (size - lag) / 2**12
            assert abs(((counts - mean) ** 2 / mean).sum() - 2**12) < 5 * 2**6.5, lag


def test_bits_are_independent_of_those_of_other_steps_and_seeds() -> None:
    runs = [(0, step) for step in range(1, 9)] + [(seed, 1) for seed in (1, 2, 2**31, 2**32 - 1)] + [(1, 2)]
    found = [signs(SIZE, seed, step) for seed, step in runs]
    assert max(abs(correlation(a, b)) for a, b in itertools.combinations(found, 2)) < 4.5
    shifted = [abs(correlation(a[:-1], b[1:])) for a, b in itertools.permutations(found, 2)]
    assert max(shifted) < 4.5


def test_bits_are_independent_of_those_of_other_buffers() -> None:
    size = SIZE // 2
    draws = table.random_bits(0x0123456789ABCDEF, 0, np.zeros(size))
    buffers = [next(draws) for _ in range(4)]
    for values in buffers:
        for part in values >> np.uint32(8), values & np.uint32(255):
            counts = np.bincount(part, minlength=256)
            chi = ((counts - size / 256) ** 2 / (size / 256)).sum()
            assert abs(chi - 255) < 5 * (2 * 255) ** 0.5
    bits = [values >> np.uint32(k) & 1 for values in buffers for k in range(16)]
    assert max(abs(correlation(a, b)) for a, b in itertools.combinations(bits, 2)) < 4.8


def test_two_buffers_of_a_step_are_rounded_differently() -> None:
    grad = np.full(SIZE, 1.2345, np.float32)
    optimizer = fastopt.Adam([np.zeros(SIZE, np.float32)], betas=(0.9, 0.9), state_dtype="bfloat16")
    optimizer.step([grad])
    first, second = (optimizer.state[0][name].astype(np.float64) for name in ("exp_avg", "exp_avg_sq"))
    assert first.std() > 0 and second.std() > 0
    assert abs(correlation(first, second)) < 4.5


def test_moves_ahead_are_rounded_differently() -> None:
    """A parameter is moved ahead, returned and updated: each time the random bits are others."""
    found = []
    for way in "step", "ahead", "back":
        param = np.zeros(SIZE, BFLOAT16)
        optimizer = fastopt.NAG([param], lr=1.0, momentum=1.0, state_dtype="float32")
        optimizer.state[0]["velocity"][...] = halfway(SIZE) if way == "ahead" else -halfway(SIZE)
        if way == "step":
            optimizer.param_groups[0]["momentum"] = 0.0
            optimizer.step([-halfway(SIZE)])
        else:
            optimizer.lookahead()
        if way == "back":
            optimizer.load_state_dict(optimizer.state_dict())  # then nobody knows where it was
            param[...] = 0
            optimizer.step([None])
        found.append(param == 1)
        assert 0.45 < found[-1].mean() < 0.55
    assert max(abs(correlation(a, b)) for a, b in itertools.combinations(found, 2)) < 4.5


@pytest.mark.parametrize("order", ["C", "F"])
def test_nag_returns_a_parameter_without_gradient(order: Any) -> None:
    """Exactly: moves that are rounded at random would take it away, step by step."""
    params = [table.plain_values(600, "bfloat16", k).reshape(20, 30).copy(order) for k in range(2)]
    grads = [table.plain_values(600, "bfloat16", 2 + k).reshape(20, 30) for k in range(2)]
    optimizer = fastopt.NAG(params, lr=0.1)
    optimizer.step(grads)
    before = params[1].copy()
    for _ in range(20):
        optimizer.lookahead()
        assert not np.array_equal(params[1], before)
        optimizer.step([grads[0], None])
        np.testing.assert_array_equal(params[1], before)


# -- Gradients -------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("start", [0.0, -0.0])
def test_every_gradient_of_16_bits(isa: str, dtype: str, start: float) -> None:
    fastopt.set_isa(isa)
    grad = ALL_PATTERNS.view(table.dtype_of(dtype))
    param = np.full(grad.shape, start, np.float32)
    with np.errstate(invalid="ignore"):
        expected = param - grad.astype(np.float32)
    functional.sgd(param, grad, step=1, lr=1.0)
    assert table.bits_of(param) == table.bits_of(expected)


def test_gradients_may_change_their_dtype() -> None:
    def train(isa: str) -> Any:
        fastopt.set_isa(isa)
        params = [table.plain_values(size, "float32", 0) for size in (100, 7)]
        optimizer = fastopt.Adam(params, lr=0.1, state_dtype="bfloat16")
        for step, dtype in enumerate(["bfloat16", "float32", "float16", "bfloat16", "bfloat16", "float32"]):
            grads = [table.plain_values(2 * p.size, dtype, step) for p in params]
            optimizer.step([g[::2] if step % 2 else g[: g.size // 2] for g in grads])
        return table.bits(optimizer, params)

    results = [train(isa) for isa in fastopt.available_isas()]
    assert all(result == results[0] for result in results)


def test_bound_gradients_of_16_bits_are_read_again() -> None:
    params = [np.zeros(5, np.float32), np.zeros(5, np.float32)]
    buffers = [np.ones(5, BFLOAT16), np.ones(5, np.float16)]
    optimizer = fastopt.SGD(params, lr=1.0)
    optimizer.bind(buffers)
    optimizer.step()
    for buffer in buffers:
        buffer[...] = 2
    optimizer.step()
    np.testing.assert_array_equal(params, -3)


def test_a_gradient_of_16_bits_that_is_a_state() -> None:
    optimizer = fastopt.Adam([np.zeros(5, np.float32)], state_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"parameter 0.*shares memory with the state"):
        optimizer.step([optimizer.state[0]["exp_avg"]])


# -- State -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", table.RUNS.values(), ids=str)
def test_the_state_takes_half_the_memory(variant: table.Variant) -> None:
    def size(state_dtype: str | None) -> int:
        options = variant.options | {"state_dtype": state_dtype}
        state = variant.cls([np.zeros(1000, np.float32)], **options).state[0]
        return sum(state[name].nbytes for name in table.states_in_use(variant.cls, variant.hyper))

    assert 2 * size("bfloat16") == size(None) == size("float32")


def test_an_initial_value_is_rounded() -> None:
    optimizer = fastopt.Adagrad([np.zeros(3, np.float32)], initial_accumulator_value=0.3, state_dtype="bfloat16")
    assert set(optimizer.state[0]["sum"]) == {BFLOAT16.type(0.3)}


@pytest.mark.parametrize("variant", table.BASES, ids=str)
def test_a_run_goes_on_bit_for_bit(variant: table.Variant) -> None:
    params = [table.plain_values(size, "bfloat16", 0) for size in (100, 3)]
    grads = [[table.plain_values(p.size, "bfloat16", step) for p in params] for step in range(4)]
    optimizer = variant.make(params)
    for step in range(2):
        optimizer.step(grads[step])
    ahead = isinstance(optimizer, fastopt.NAG)
    if ahead:
        optimizer.lookahead()
    others, saved = [p.copy() for p in params], copy.deepcopy(optimizer.state_dict())
    resumed = variant.cls(others)
    resumed.load_state_dict(saved)
    for step in range(2, 4):
        # what is ahead and has no gradient goes back to where it was, which a state dict does not say
        given = [grads[step][0], grads[step][1] if ahead else None]
        optimizer.step(given)
        resumed.step(given)
    assert table.bits(resumed, others) == table.bits(optimizer, params)


def test_a_state_is_converted_to_the_nearest() -> None:
    def make(**options: Any) -> fastopt.Optimizer:
        return fastopt.Adam([np.ones(1000, np.float32)], **options)

    wide = make()
    wide.step([table.plain_values(1000, "float32", 0)])
    exact = wide.state[0]["exp_avg_sq"].copy()
    nearest = exact.astype(BFLOAT16)

    saved = wide.state_dict()
    loaded = make()
    saved["param_groups"][0]["state_dtype"] = "bfloat16"
    with pytest.warns(UserWarning, match="state_dtype is 'bfloat16'"):
        loaded.load_state_dict(saved)
    np.testing.assert_array_equal(loaded.state[0]["exp_avg_sq"], nearest)
    assert loaded.state[0]["exp_avg_sq"].dtype == BFLOAT16

    wide.param_groups[0]["state_dtype"] = "bfloat16"
    np.testing.assert_array_equal(wide.state_dict()["state"][0]["exp_avg_sq"], nearest)
    wide.step([np.ones(1000, np.float32)])
    assert wide.state[0]["exp_avg_sq"].dtype == BFLOAT16
    now = wide.state[0]["exp_avg_sq"].astype(np.float32)
    wide.param_groups[0]["state_dtype"] = None
    np.testing.assert_array_equal(wide.state_dict()["state"][0]["exp_avg_sq"], now)
    assert wide.state_dict()["state"][0]["exp_avg_sq"].dtype == np.float32


# -- Refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "wanted"), [("float64", "bfloat16"), ("float64", "float32"), ("float32", "float64")]
)
def test_a_state_dtype_without_kernels(dtype: str, wanted: str) -> None:
    params = {"w1": np.ones(3, dtype)}
    with pytest.raises(ValueError, match=f"state_dtype: 'w1' is of {dtype}, its states cannot be of {wanted}"):
        fastopt.Adam(params, state_dtype=wanted)
    optimizer = fastopt.Adam(params)
    optimizer.step([np.ones(3, dtype)])
    before = table.bits(optimizer, [*params.values()])
    optimizer.param_groups[0]["state_dtype"] = wanted
    with pytest.raises(ValueError, match="state_dtype: 'w1'"):
        optimizer.step([np.ones(3, dtype)])
    optimizer.param_groups[0]["state_dtype"] = None
    saved = optimizer.state_dict()
    saved["param_groups"][0]["state_dtype"] = wanted
    with pytest.raises(ValueError, match="state_dtype: 'w1'"):
        optimizer.load_state_dict(saved)
    assert table.bits(optimizer, [*params.values()]) == before
    optimizer.step([np.ones(3, dtype)])


def test_wrong_states_of_a_function() -> None:
    p, g = (np.ones(3, np.float32) for _ in range(2))
    for m, v in [(np.zeros(3, BFLOAT16), np.zeros(3, np.float32)), (np.zeros(3), np.zeros(3))]:
        with pytest.raises(
            TypeError, match=r"^the state 'exp_avg(_sq)?' of 'param': .* convert it to .*(float32|bfloat16)"
        ):
            functional.adam(p, g, m, v, step=1)
    with pytest.raises(ValueError, match="state_dtype"):
        functional.adam(p, g, np.zeros(3, BFLOAT16), np.zeros(3, BFLOAT16), step=1, state_dtype="bfloat16")
    assert (p == 1).all()


def test_gradients_that_no_kernel_reads() -> None:
    for dtype, grad in [
        ("float64", "bfloat16"),
        ("float64", "float16"),
        ("bfloat16", "float16"),
        ("bfloat16", "float64"),
    ]:
        param = np.ones(3, table.dtype_of(dtype))
        with pytest.raises(TypeError, match=f"parameter 0: its gradient has dtype {grad}, the parameter {dtype}"):
            fastopt.SGD([param]).step([np.ones(3, table.dtype_of(grad))])
        assert (param == 1).all()


WITHOUT = """
import sys
import numpy as np
import fastopt
params = [np.ones(3, np.float32)]
optimizer = fastopt.Adam(params)
optimizer.step([np.ones(3, np.float16)])
try:
    optimizer.step([np.ones(3, np.uint16)])
except TypeError:
    pass
optimizer.load_state_dict(optimizer.state_dict())
assert "ml_dtypes" not in sys.modules
sys.modules["ml_dtypes"] = None  # as if it were not installed
optimizer.param_groups[0]["state_dtype"] = "bfloat16"
before = params[0].tobytes()
for call in (
    lambda: fastopt.Adam(params, state_dtype="bfloat16"),
    lambda: optimizer.step([np.ones(3, np.float32)]),
):
    try:
        call()
    except ImportError as error:
        assert 'pip install "fastopt[bfloat16]"' in str(error)
    else:
        raise AssertionError
assert params[0].tobytes() == before
optimizer.param_groups[0]["state_dtype"] = None
optimizer.step([np.ones(3, np.float32)])
"""


def test_nobody_else_needs_ml_dtypes() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
