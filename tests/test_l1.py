"""The option l1: l1 * sign(p) is added to the gradient, behind its clipping and before weight decay."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import table
from table import Array

import fastopt
from fastopt import functional

L1 = 0.25
CLASSES = [cls for cls in table.OPTIMIZERS if table.adds_l1(cls)]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
SHAPES = [(300, 50), (7,), (), (0,), (70_001,)]


def arrays(dtype: Any, seed: int) -> list[Array]:
    """Some elements are zeros of either sign, infinite or no number."""
    rng = np.random.default_rng(seed)
    found = [np.asarray(rng.standard_normal(shape), np.float64).astype(dtype) for shape in SHAPES]
    found[1][:] = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-30, -1e-30]
    return found


def content(optimizer: Any, params: list[Array]) -> list[bytes]:
    return [p.tobytes() for p in params] + [
        np.asarray(x).tobytes() for state in optimizer.state.values() for x in state.values()
    ]


def test_the_classes_where_users_look_for_it() -> None:
    assert {fastopt.SGD, fastopt.Adam, fastopt.AdamW, fastopt.Adagrad} == {*CLASSES}


@every_class
@pytest.mark.parametrize("dtype", table.DTYPES)
@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"weight_decay": 0.1, "lr": 0.1}], ids=str)
def test_it_is_the_step_of_another_gradient(cls: Any, dtype: str, options: dict[str, Any]) -> None:
    params, others = arrays(dtype, 0), arrays(dtype, 0)
    optimizer, plain = cls(params, l1=L1, **options), cls(others, **options)
    for step in range(3):
        grads = arrays(dtype, 1 + step)
        kept = [g.tobytes() for g in grads]
        sign = -1 if options.get("maximize") else 1
        with np.errstate(invalid="ignore"):
            changed = [np.asarray(sign * (sign * g + np.dtype(dtype).type(L1) * np.sign(p)))
                       for g, p in zip(grads, others, strict=True)]  # fmt: skip
        optimizer.step(grads)
        plain.step(changed)
        assert [g.tobytes() for g in grads] == kept
    for a, b in zip(params, others, strict=True):
        np.testing.assert_array_equal(a, b)


@every_class
def test_it_pulls_towards_0_without_a_gradient(cls: Any) -> None:
    param = np.array([1.0, -1.0, 0.0])
    optimizer = cls([param], lr=0.01, l1=L1)
    for _ in range(20):
        optimizer.step([np.zeros(3)])
    assert 0 < param[0] < 1
    assert -1 < param[1] < 0
    assert param[2] == 0


EVERYWHERE = [(cls, format) for cls in CLASSES for format in table.FORMATS]


@table.cases(
    "cls, format", EVERYWHERE, [(cls, f) for cls, f in EVERYWHERE if cls is fastopt.AdamW or f in table.DTYPES]
)
def test_the_same_bits_everywhere(cls: Any, format: str) -> None:
    """For every format, instruction set and number of threads, for gradients in any layout, however they are clipped."""
    parameter, gradient, states = table.FORMATS[format]
    asked: list[dict[str, Any]] = [
        {}, {"grad_scale": 0.5, "max_value": 0.3}, {"max_norm_each": 0.5}, {"max_norm": 1.0, "zero_grads": True},
    ]  # fmt: skip
    results = []
    for isa in fastopt.available_isas():
        for threads in (1, 3) if isa != "numpy" else (1,):
            fastopt.set_isa(isa)
            fastopt.set_num_threads(threads)
            params = arrays(table.dtype_of(parameter), 0)
            groups = [{"params": params[:3], "l1": lambda t: L1 / (1 + t)}, {"params": params[3:], "l1": L1}]
            optimizer = cls(groups, weight_decay=0.1, state_dtype=None if states == parameter else states)
            for step, options in enumerate(asked):
                grads = arrays(table.dtype_of(gradient), 1 + step)
                if options.keys() & {"max_norm", "max_norm_each"}:
                    grads[1][...] = 1
                grads[0] = np.asfortranarray(grads[0])
                optimizer.step(grads, **options)
            results.append(content(optimizer, params))
    assert all(result == results[0] for result in results)


@every_class
def test_what_one_step_adds_the_next_does_not_keep(cls: Any) -> None:
    params, others = [np.linspace(-1, 2, 9)], [np.linspace(-1, 2, 9)]
    optimizer, plain = cls(params, l1=L1), cls(others)
    for step in range(4):
        optimizer.param_groups[0]["l1"] = L1 if step % 2 else 0.0
        grad = np.cos(others[0] + step)
        optimizer.step([grad])
        plain.step([grad + (L1 if step % 2 else 0.0) * np.sign(others[0])])
        assert params[0].tobytes() == others[0].tobytes()


@every_class
def test_every_way_to_make_a_step(cls: Any) -> None:
    """Bound gradients, update, a function, an edited group: the bits of step."""
    grads = [np.linspace(-1, 1, 9), np.ones(4)]

    def start() -> list[Array]:
        return [np.linspace(-1, 2, 9), np.zeros(4)]

    params = start()
    cls(params, l1=L1).step(grads)
    wanted = [p.tobytes() for p in params]
    for way in ("bind", "update", "update by name", "edit", "function", "load"):
        params = start()
        if way == "bind":
            optimizer = cls(params, l1=L1)
            optimizer.bind(grads)
            optimizer.step()
        elif way == "update":
            cls(l1=L1).update(params, grads)
        elif way == "update by name":
            cls([{"names": ["a"], "l1": 0.0}, {}], l1=L1).update({"b": params[0], "c": params[1]},
                                                                {"b": grads[0], "c": grads[1]})  # fmt: skip
        elif way == "edit":
            optimizer = cls(params)
            optimizer.param_groups[0]["l1"] = L1
            optimizer.step(grads)
        elif way == "load":
            optimizer = cls(params)
            optimizer.load_state_dict(cls(start(), l1=L1).state_dict())
            optimizer.step(grads)
        elif way == "function":
            function = getattr(functional, cls.__name__.lower())
            for p, g in zip(params, grads, strict=True):
                states = {name: np.zeros_like(p) for name in table.states_in_use(cls, table.defaults_of(cls))}
                function(p, g, **states, step=1, l1=L1)
        else:
            raise AssertionError(way)
        assert [p.tobytes() for p in params] == wanted, way


def test_it_is_refused_where_the_formula_has_none() -> None:
    with pytest.raises((TypeError, ValueError), match="l1"):
        fastopt.Lion([np.ones(3)], l1=0.1)  # type: ignore[call-arg]


def test_ftrl_has_its_own() -> None:
    """There it is no part of the gradient: weights that gradients do not hold up become exactly 0."""
    param = np.array([0.01, -0.01])
    optimizer = fastopt.FTRL([param], lr=0.1, l1=1.0)
    for _ in range(3):
        optimizer.step([np.array([0.001, -0.001])])
    assert param.tolist() == [0, 0]


def test_bfloat16_parameters() -> None:
    param = np.ones(5, ml_dtypes.bfloat16)
    fastopt.SGD([param], lr=1.0, l1=0.25).step([np.zeros(5, ml_dtypes.bfloat16)])
    assert param.astype(float).tolist() == [0.75] * 5
