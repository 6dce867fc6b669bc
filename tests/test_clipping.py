"""Norms, clipping, steps that are skipped and zeros in the gradients: in a step, and alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array
from tracing import traced

import fastopt

SHAPES = [(300, 50), (7,), (), (5000,), (0,), (70_001,)]
WAYS: dict[str, dict[str, Any]] = {
    "max_norm": {"max_norm": 1.0},
    "the largest": {"max_norm": 1.0, "norm_type": math.inf},
    "max_value": {"max_value": 0.1},
    "max_norm_each": {"max_norm_each": 0.5},
    "all": {"grad_scale": 0.5, "max_value": 0.9, "max_norm_each": 0.5, "max_norm": 0.7},
    "all by the largest": {"max_value": 0.9, "max_norm_each": 0.5, "max_norm": 0.4, "norm_type": math.inf},
    "finite": {"skip_nonfinite": True, "zero_grads": True},
}


def arrays(dtype: Any, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), np.float64).astype(dtype) for shape in SHAPES]


def norm(values: Array, kind: float) -> float:
    if not values.size:
        return 0.0
    return float(np.abs(values).max() if kind == math.inf else np.sqrt((values * values).sum()))


def clipped(grads: list[Array], way: dict[str, Any]) -> tuple[list[Array], float]:
    """The gradients as the documentation says, and the norm that a step returns."""
    kind = way.get("norm_type", 2.0)
    found = [g.astype(np.float64) * way.get("grad_scale", 1.0) for g in grads]
    returned = norm(np.array([norm(g, kind) for g in found]), kind)
    if "max_value" in way:
        found = [np.clip(g, -way["max_value"], way["max_value"]) for g in found]
    if "max_norm_each" in way:
        found = [g * min(1.0, way["max_norm_each"] / (norm(g, kind) + 1e-6)) for g in found]
    if "max_norm" in way:
        total = norm(np.array([norm(g, kind) for g in found]), kind)
        found = [g * min(1.0, way["max_norm"] / (total + 1e-6)) for g in found]
    return found, returned


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_step_does_what_it_says(way: dict[str, Any]) -> None:
    params, others = arrays(np.float64, 0), arrays(np.float64, 0)
    optimizer, plain = fastopt.Adam(params, lr=0.1), fastopt.Adam(others, lr=0.1)
    for step in range(3):
        grads = arrays(np.float64, 1 + step)
        expected, total = clipped(grads, way)
        returned = optimizer.step(grads, **way)
        plain.step(expected)
        if way.keys() & {"max_norm", "max_norm_each", "skip_nonfinite"}:
            assert returned == pytest.approx(total, rel=1e-12)
        else:
            assert returned is None
        assert not way.get("zero_grads") or not any(g.any() for g in grads)
    for param, other in zip(params, others, strict=True):
        np.testing.assert_allclose(param, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("isa", ["numpy", fastopt.available_isas()[0]])
def test_one_call_leaves_nothing_behind_for_the_next(isa: str) -> None:
    """Every way follows every other, with other gradients: each call is as the first one of a new optimizer."""
    fastopt.set_isa(isa)
    params, buffers = arrays(np.float32, 0), arrays(np.float32, 0)
    optimizer = fastopt.Adam(params, lr=0.1)
    ways = [*WAYS.values(), {}, {"skip_nonfinite": True, "max_norm": 1.0}]
    for number, pair in enumerate(itertools.product(ways, repeat=2)):
        for way in pair:
            grads: list[Any] = [*buffers]
            for grad, values in zip(grads, arrays(np.float32, number), strict=True):
                grad[...] = values
            if number % 5 == 0 and way.get("skip_nonfinite"):
                grads[0][0] = np.nan
            grads[number % len(grads)] = None  # so that sums are cut elsewhere
            others = [p.copy() for p in params]
            new = fastopt.Adam(others)
            new.load_state_dict(optimizer.state_dict())
            expected = new.step([None if g is None else g.copy() for g in grads], **way)
            assert str(optimizer.step(grads, **way)) == str(expected)
            assert [p.tobytes() for p in params] == [p.tobytes() for p in others]


@pytest.mark.parametrize("format", table.FORMATS)
def test_the_same_bits_everywhere(format: str) -> None:
    parameter, gradient, states = table.FORMATS[format]
    results = []
    for isa in fastopt.available_isas():
        for threads in (1, 3) if isa != "numpy" else (1,):
            fastopt.set_isa(isa)
            fastopt.set_num_threads(threads)
            params = arrays(table.dtype_of(parameter), 0)
            optimizer = fastopt.Adam(params, state_dtype=None if states == parameter else states)
            found: list[Any] = []
            for step, way in enumerate(WAYS.values()):
                grads = arrays(table.dtype_of(gradient), 1 + step)
                if step % 2:  # another layout
                    grads[0] = np.asfortranarray(grads[0])
                found.append(optimizer.step(grads, **way))
            results.append([found, table.bits(optimizer, params)])
    assert all(result == results[-1] for result in results)


@pytest.mark.parametrize("isa", fastopt.available_isas())
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_is_skipped(wrong: float, isa: str) -> None:
    fastopt.set_isa(isa)
    for dtype in np.float32, np.float64, np.dtype(ml_dtypes.bfloat16):
        params, grads = arrays(dtype, 0), arrays(dtype, 1)
        optimizer = fastopt.Adam(params)
        optimizer.step([g.copy() for g in grads])
        before = table.bits(optimizer, params)
        bad = [g.copy() for g in grads]
        bad[3][-1] = wrong
        returned = optimizer.step(bad, skip_nonfinite=True, zero_grads=True)
        assert returned is not None
        assert not math.isfinite(returned)
        assert table.bits(optimizer, params) == before
        assert not any(g.any() for g in bad)
        assert math.isfinite(optimizer.step(bad, skip_nonfinite=True) or 0.0)
        assert optimizer.state[0]["step"] == 2


def test_large_gradients_have_finite_norms() -> None:
    for isa in fastopt.available_isas():
        fastopt.set_isa(isa)
        assert fastopt.global_norm([np.full(3, 1e30, np.float32)]) == pytest.approx(math.sqrt(3) * 1e30, rel=1e-6)
        assert fastopt.global_norm([np.full(3, 1e200)]) == pytest.approx(math.sqrt(3) * 1e200, rel=1e-12)
        optimizer = fastopt.SGD([np.ones(3)])
        assert optimizer.step([np.full(3, 1e200)], skip_nonfinite=True) == pytest.approx(math.sqrt(3) * 1e200)
        assert optimizer.state[0]["step"] == 1


def test_a_limit_may_be_edited_in_place_between_steps() -> None:
    """A step recognises the arguments of the last one, but not where they can be edited."""
    params, others, limit = [np.ones(5)], [np.ones(5)], np.array(9.0)
    optimizer, other = fastopt.SGD(params, lr=1.0), fastopt.SGD(others, lr=1.0)
    for value in 9.0, 9.0, 0.5, 0.25:
        limit[...] = value
        optimizer.step([np.ones(5)], max_norm=limit)  # type: ignore[arg-type]
        other.step([np.ones(5)], max_norm=value)
        assert params[0].tobytes() == others[0].tobytes()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^max_norm: "):
            optimizer.step([np.ones(5)], max_norm=-1.0)
    optimizer.step([np.ones(5)], max_norm=0.25)
    assert params[0][0] == pytest.approx(others[0][0] - 0.25 / np.sqrt(5), rel=1e-6)


def test_update_clips_too() -> None:
    params, others = {"w": np.ones(5)}, [np.ones(5)]
    grads = np.arange(5.0)
    optimizer, other = fastopt.Adam(lr=0.1), fastopt.Adam(others, lr=0.1)
    for _ in range(3):
        a = optimizer.update(params, {"w": grads}, max_norm=0.5)
        assert a == other.step([grads], max_norm=0.5)
    assert params["w"].tobytes() == others[0].tobytes()


# -- Without an optimizer --------------------------------------------------------------------------


@pytest.mark.parametrize("isa", fastopt.available_isas())
def test_gradients_alone(isa: str) -> None:
    fastopt.set_isa(isa)
    for kind in 2.0, math.inf:
        grads = [*arrays(np.float64, 3), np.arange(12.0).reshape(3, 4).T, np.arange(9.0)[::2]]
        before = [g.copy() for g in grads]
        expected, total = clipped(grads, {"max_norm": 1.0, "norm_type": kind})
        assert fastopt.global_norm(grads, kind) == pytest.approx(total, rel=1e-12)
        assert fastopt.global_norm([None, *grads], kind) == fastopt.global_norm(grads, kind)
        assert fastopt.clip_grad_norm(grads, 1.0, kind) == fastopt.global_norm(before, kind)
        for grad, want in zip(grads, expected, strict=True):
            np.testing.assert_allclose(grad, want, rtol=1e-12)
        fastopt.clip_grad_value(before, 0.3)
        for grad, want in zip(before, [*arrays(np.float64, 3)], strict=False):
            np.testing.assert_array_equal(grad, np.clip(want, -0.3, 0.3))
    assert fastopt.global_norm([]) == 0.0
    assert math.isnan(fastopt.global_norm([np.array([math.nan, math.inf])], math.inf))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_norm": -1.0}, "^max_norm: "),
        ({"max_norm": "1"}, "^max_norm: "),
        ({"max_value": math.nan}, "^max_value: "),
        ({"max_norm_each": None, "max_norm": 1.0, "norm_type": 1.0}, "^norm_type: .*use 2 or math.inf"),
        ({"skip_nonfinite": 1}, "^skip_nonfinite: "),
        ({"zero_grads": "yes"}, "^zero_grads: "),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], named: str) -> None:
    params, grads = arrays(np.float32, 0), arrays(np.float32, 1)
    optimizer = fastopt.Adam(params)
    before = table.bits(optimizer, params)
    with pytest.raises((TypeError, ValueError), match=named):
        optimizer.step(grads, **options)
    assert table.bits(optimizer, params) == before


@pytest.mark.filterwarnings("ignore:.*float64")
def test_gradients_that_cannot_be_written_are_refused() -> None:
    read_only = np.ones(4)
    read_only.flags.writeable = False
    shared = np.ones(24)
    for grads in [
        [read_only, np.ones(4)],
        [np.broadcast_to(1.0, 4), np.ones(4)],
        [shared[:4], shared[2:6]],
        [
            shared[:16:4],
            shared[1:4:2],
            shared[8:12],
        ],  # the first and the last, and one in between that shares nothing
        [shared[:4].astype(np.float32), *np.broadcast_to(1.0, (1, 4))],
    ]:
        params = [np.zeros(g.shape, grads[0].dtype) for g in grads]
        optimizer = fastopt.Adam(params)
        with pytest.raises(ValueError, match=r"zero_grads"):
            optimizer.step(grads, zero_grads=True)
        with pytest.raises(ValueError, match=r"pass a copy"):
            fastopt.clip_grad_norm(grads, 1.0)
        assert not any(p.any() for p in params)
        assert shared.all()
        optimizer.step([g.copy() for g in grads], zero_grads=True)


@pytest.mark.parametrize("as_dict", [False, True])
def test_the_interpreter_is_asked_about_all_gradients_at_once(as_dict: bool) -> None:
    """There may be thousands."""

    def operations(count: int, call: Callable[[Any], object]) -> int:
        grads: Any = list(np.ones((count, 3)))
        if as_dict:
            grads = dict(zip(map(str, range(count)), grads, strict=True))
        call(grads)  # what is made once in a process is made now
        return traced(lambda: call(grads))

    calls: list[Callable[[Any], object]] = [
        fastopt.global_norm, lambda grads: fastopt.clip_grad_norm(grads, 1.0),
        lambda grads: fastopt.clip_grad_value(grads, 0.5),
    ]  # fmt: skip
    for call in calls:
        assert (
            abs(operations(10, call) - operations(300, call)) < 100
        )  # what is counted changes as Python warms up


def test_zeros_in_other_gradients_than_the_last_cost_no_operations_of_the_interpreter() -> None:
    def operations(count: int) -> int:
        optimizer = fastopt.SGD(list(np.ones((count, 3))))
        *before, last = [list(np.ones((count, 3))) for _ in range(4)]
        for grads in before:
            optimizer.step(grads, zero_grads=True)
        return traced(lambda: optimizer.step(last, zero_grads=True))

    assert abs(operations(10) - operations(300)) < 100


def test_what_lies_between_others_and_shares_nothing_is_written() -> None:
    shared = np.ones(24)
    grads = [shared[:16:4], shared[1:4:2], shared[9:12]]
    fastopt.clip_grad_value(grads, 0.5)
    assert shared.sum() == 24 - 9 / 2
    fastopt.SGD([np.zeros(g.shape) for g in grads]).step(grads, zero_grads=True)
    assert shared.sum() == 24 - 9


@pytest.mark.filterwarnings("ignore:.*float64")
@pytest.mark.parametrize("isa", fastopt.available_isas())
def test_zeros_go_into_the_callers_gradients_whatever_was_made_of_them(isa: str) -> None:
    """Those that were gathered, widened or rounded, in steps that are made and in those that are skipped."""
    fastopt.set_isa(isa)
    makers: list[Callable[[Array], Array]] = [
        np.asfortranarray, lambda g: np.repeat(g, 2, axis=1)[:, ::2], lambda g: g.astype(np.float16),
        lambda g: g.astype(np.float64), lambda g: np.repeat(g.astype(np.float64), 2, axis=0)[::2],
        lambda g: np.asfortranarray(g.astype(np.float64)),
    ]  # fmt: skip
    start = np.arange(12, dtype=np.float32).reshape(3, 4)
    for make in makers:
        params, others = [np.ones((3, 4), np.float32)], [np.ones((3, 4), np.float32)]
        optimizer, other = fastopt.Adam(params), fastopt.Adam(others)
        for value in 1.0, math.nan, 2.0:
            grad = make(start * np.float32(value))
            around = grad if grad.base is None else grad.base
            left = around.size - grad.size
            optimizer.step([grad], skip_nonfinite=True, zero_grads=True)
            assert not grad.any()
            assert np.count_nonzero(around) <= left
            if not math.isnan(value):
                other.step([start * np.float32(value)])
        assert params[0].tobytes() == others[0].tobytes()
    with pytest.raises(ValueError, match="parameter 0: its gradient is read-only, so zero_grads cannot"):
        fastopt.SGD([np.zeros((), np.float32)]).step([np.float32(1.0)], zero_grads=True)


@pytest.mark.filterwarnings("ignore:.*float64")
def test_a_gradient_that_was_rounded_in_a_refused_step_is_not_zeroed_by_the_next() -> None:
    params, bound = ([np.ones(4, np.float32), np.ones(4, np.float32)] for _ in range(2))
    optimizer = fastopt.SGD(params)
    optimizer.bind(bound)
    rounded = np.ones(4)
    with pytest.raises(ValueError, match="zero_grads"):
        optimizer.step([rounded, np.broadcast_to(np.float32(1), 4)], zero_grads=True)
    optimizer.step(zero_grads=True)
    assert rounded.all()
    assert not any(g.any() for g in bound)


@pytest.mark.parametrize("isa", ["numpy", *table.NATIVE_ISAS])
@pytest.mark.parametrize("cls", table.ALL, ids=lambda cls: cls.__name__)
def test_a_norm_does_not_depend_on_the_optimizer(cls: Any, isa: str) -> None:
    """Those that update a matrix row by row take the norm of all of it, in the order of every other norm."""
    fastopt.set_isa(isa)
    rng = np.random.default_rng(0)
    for shape in [(5, 4), (4, 6), (7, 3), (5, 1001), (7, 4097)] * 4:
        grad = rng.standard_normal(shape)
        expected = fastopt.global_norm([grad])
        optimizer = cls([np.ones(shape)], lr=0.01)
        for threads in 1, 2:
            fastopt.set_num_threads(threads)
            assert optimizer.step([grad], max_norm=1e9) == expected
            assert optimizer.step([np.asfortranarray(grad)], max_norm=1.0, max_norm_each=1e9) == expected


def test_a_scaler() -> None:
    scaler = fastopt.GradScaler(growth_interval=3)
    for norm_of_step in (1.0, 1.0, math.inf, 1.0, 1.0, 1.0, math.nan, 2.0):
        scaler.update(norm_of_step)
    assert scaler.scale == 65536.0 * 0.5 * 2.0 * 0.5
    other = fastopt.GradScaler()
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()
    for wrong in {"init_scale": 0.0}, {"growth_factor": 1.0}, {"backoff_factor": 1.0}, {"growth_interval": 0}:
        with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}: "):
            fastopt.GradScaler(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="skip_nonfinite=True"):
        scaler.update(None)


def test_a_scaler_whose_settings_are_assigned() -> None:
    scaler = fastopt.GradScaler(1.0, growth_interval=3)
    for setting in scaler.settings:
        with pytest.raises(TypeError, match=rf"^{setting}: "):
            setattr(scaler, setting, "x")
        with pytest.raises(AttributeError, match=rf"'{setting}x' cannot be set; did you mean {setting}\?"):
            setattr(scaler, setting + "x", 1)
    for _ in range(2):
        scaler.update(1.0)
    scaler.growth_interval, scaler.growth_factor, scaler.backoff_factor = 1, 8.0, 0.25
    scaler.update(1.0)
    assert scaler.scale == 8.0
    scaler.update(math.nan)
    assert scaler.scale == 2.0
    scaler.scale = 5e-324
    scaler.update(math.nan)
    assert scaler.scale == 5e-324
